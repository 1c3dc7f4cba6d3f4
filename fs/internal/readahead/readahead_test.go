package readahead

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// empty is a file system of a root.
type empty struct{ fuse.RawFileSystem }

func (empty) GetAttr(_ <-chan struct{}, _ *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.Mode = syscall.S_IFDIR | 0o755
	return fuse.OK
}

func TestSet(t *testing.T) {
	dir := t.TempDir()
	server, err := fuse.NewServer(empty{fuse.NewDefaultRawFileSystem()}, dir, &fuse.MountOptions{DirectMountStrict: true})
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve()
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	if err := server.WaitMount(); err != nil {
		t.Fatal(err)
	}
	path, err := setting(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		bytes int
		want  string
	}{{1 << 20, "1024"}, {64 << 10, "64"}} {
		if err := Set(dir, c.bytes); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(path); strings.TrimSpace(string(got)) != c.want || err != nil {
			t.Errorf("%s KiB, want %s, %v", got, c.want, err)
		}
	}
	if err := Set(dir+"/none", 1); err == nil {
		t.Error(err)
	}
}
