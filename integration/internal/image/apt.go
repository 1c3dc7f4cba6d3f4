package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// apt asks the host's apt what packages would be installed on an empty
// machine, and downloads them: with a state and a cache of its own, so that
// nothing of the host's changes, and with the host's sources, keys and proxy.
type apt struct {
	options  []string
	archives string
}

// newApt makes the folders that apt wants below dir and fetches the lists of
// packages.
func newApt(ctx context.Context, dir string) (*apt, error) {
	a := &apt{archives: filepath.Join(dir, "archives")}
	status := filepath.Join(dir, "status")
	for _, d := range []string{"lists/partial", "archives/partial", "none/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	for _, o := range []string{
		"Dir::State=" + dir,
		"Dir::State::status=" + status,
		"Dir::Cache=" + dir,
		"Dir::Cache::archives=" + a.archives,
		"APT::Install-Recommends=0",
		// The user that apt would change to cannot read a private folder.
		"APT::Sandbox::User=root",
	} {
		a.options = append(a.options, "-o", o)
	}
	_, err := a.run(ctx, "update")
	return a, err
}

func (a *apt) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "apt-get", slices.Concat(a.options, []string{"-qq", "-y"}, args)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	return output(cmd)
}

// download gives the .deb files of packages and of all they depend on, sorted
// by name. A package may be a pattern of apt's.
func (a *apt) download(ctx context.Context, packages ...string) ([]string, error) {
	if _, err := a.run(ctx, append([]string{"--download-only", "install"}, packages...)...); err != nil {
		return nil, err
	}
	// What is already in the archives has no URI to print: look into an
	// empty folder instead.
	none := filepath.Join(filepath.Dir(a.archives), "none")
	out, err := a.run(ctx, append([]string{"-o", "Dir::Cache::archives=" + none, "--print-uris", "install"}, packages...)...)
	if err != nil {
		return nil, err
	}
	var debs []string
	for line := range strings.Lines(string(out)) {
		// 'URI' FILE SIZE HASH
		fields := strings.Fields(line)
		if len(fields) < 3 || !strings.HasPrefix(line, "'") {
			continue
		}
		debs = append(debs, filepath.Join(a.archives, fields[1]))
	}
	if len(debs) == 0 {
		return nil, fmt.Errorf("apt-get installs nothing for %q: %s", packages, out)
	}
	slices.Sort(debs)
	return debs, nil
}

// output runs cmd and gives what it printed; an error carries its standard
// error.
func output(cmd *exec.Cmd) ([]byte, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err), errors.New(stderr.String()))
	}
	return out, nil
}
