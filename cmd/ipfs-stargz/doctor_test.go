package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// doctor runs the command with a configuration, and returns what it found and
// its text.
func doctor(t *testing.T, toml string, args ...string) (d diagnosis, text string, err error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(more ...string) (string, error) {
		var out bytes.Buffer
		cmd := command()
		cmd.SetOut(&out)
		cmd.SetArgs(slices.Concat([]string{"doctor", "--config", file}, args, more))
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	text, err = run()
	found, errJSON := run("--json")
	if fmt.Sprint(err) != fmt.Sprint(errJSON) {
		t.Errorf("as text: %v; as JSON: %v", err, errJSON)
	}
	if err := json.Unmarshal([]byte(found), &d); err != nil {
		t.Fatalf("%v in %s", err, found)
	}
	for _, c := range d.Checks {
		if c.OK != (c.Mend == "") || c.Detail == "" || !strings.Contains(text, c.Name) || !strings.Contains(text, c.Detail) {
			t.Errorf("%+v in\n%s", c, text)
		}
	}
	return d, text, err
}

// find returns the check of this name.
func (d *diagnosis) find(t *testing.T, name string) check {
	t.Helper()
	i := slices.IndexFunc(d.Checks, func(c check) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("no check %q in %+v", name, d.Checks)
	}
	return d.Checks[i]
}

// TestDoctor asks about this machine, which has what it takes, for a root that
// is not there yet.
func TestDoctor(t *testing.T) {
	dir := t.TempDir()
	d, text, err := doctor(t, fmt.Sprintf("root = '%s/not/yet'", dir), "--containerd-address", dir+"/containerd.sock")
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if d.Mode != "kernel" || !strings.Contains(d.Why, "EROFS") || d.Kernel == nil || d.Kernel.Data == "" {
		t.Errorf("mode: %+v", d)
	}
	for _, name := range []string{"rights", "root", "overlayfs", "EROFS", "overlayfs over EROFS", "overlayfs over FUSE", "user namespaces", "mode", "FUSE", "space"} {
		if c := d.find(t, name); !c.OK {
			t.Errorf("%+v", c)
		}
	}
	if c := d.find(t, "containerd"); c.OK || !strings.Contains(c.Mend, "start") {
		t.Errorf("no containerd: %+v", c)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestDoctorUnwell checks that what is missing is named, and whether lazy
// layers work all the same.
func TestDoctorUnwell(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"upper", "work", "overlay"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	overlay := dir + "/overlay"
	if err := unix.Mount("overlay", overlay, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%[2]s/upper,workdir=%[2]s/work", overlay, dir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(overlay, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		toml, check, detail, mend string
		vital                     bool
	}{
		{"root = '" + overlay + "'", "root", "overlayfs", "volume", true},
		{"root = '" + overlay + "'", "overlayfs", "not supported as upperdir", "ext4", true},
		{"root = '" + overlay + "'", "mode", "cannot mount", "above", true},
		{"root = '" + dir + "/file'", "root", "no directory", "set root", true},
		{"root = '" + dir + "/file/below'", "root", "not a directory", "set root", true},
		{"root = '" + dir + "'\n[ipfs]\nkeep_free_percent = 99", "space", "stay free", "keep_free_percent", false},
	} {
		d, text, err := doctor(t, c.toml, "--containerd-address", dir+"/none")
		if errors.Is(err, errUnwell) != c.vital || err != nil && !c.vital || c.vital != (d.Mode == "") {
			t.Errorf("%s: error %v, mode %q", c.toml, err, d.Mode)
		}
		found := d.find(t, c.check)
		if found.OK || !strings.Contains(found.Detail, c.detail) || !strings.Contains(found.Mend, c.mend) {
			t.Errorf("%s: %+v", c.toml, found)
		}
		if strings.Contains(text, "FAILED") != c.vital || !c.vital && !strings.Contains(text, "missing") {
			t.Errorf("%s:\n%s", c.toml, text)
		}
	}
}

// plugins is a containerd that has these snapshotters.
type plugins struct {
	introspectionapi.UnimplementedIntrospectionServer
	versionapi.UnimplementedVersionServer
	ids []string
}

func (p *plugins) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: "v2"}, nil
}

func (p *plugins) Plugins(_ context.Context, r *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	var found introspectionapi.PluginsResponse
	for _, id := range p.ids {
		if len(r.Filters) == 1 && strings.Contains(r.Filters[0], "id=="+fmt.Sprintf("%q", id)) {
			found.Plugins = append(found.Plugins, &introspectionapi.Plugin{ID: id})
		}
	}
	return &found, nil
}

func TestDoctorContainerd(t *testing.T) {
	for _, c := range []struct {
		ids  []string
		mend string // in the text
	}{
		{[]string{"overlayfs", "ipfs-stargz"}, ""},
		{[]string{"overlayfs"}, "[proxy_plugins.ipfs-stargz]"},
	} {
		dir := t.TempDir()
		l, err := net.Listen("unix", dir+"/sock")
		if err != nil {
			t.Fatal(err)
		}
		srv := grpc.NewServer()
		p := &plugins{ids: c.ids}
		introspectionapi.RegisterIntrospectionServer(srv, p)
		versionapi.RegisterVersionServer(srv, p)
		served := make(chan error, 1)
		go func() { served <- srv.Serve(l) }()
		d, text, err := doctor(t, "root = '"+dir+"'", "--containerd-address", dir+"/sock")
		srv.Stop()
		if err := errors.Join(err, <-served); err != nil {
			t.Error(err)
		}
		if found := d.find(t, "containerd"); found.OK != (c.mend == "") || !strings.Contains(text, c.mend) {
			t.Errorf("with %q: %+v", c.ids, found)
		}
	}
}
