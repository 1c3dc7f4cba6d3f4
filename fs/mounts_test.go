package fs

import (
	"slices"
	"strings"
	"testing"
)

func TestParseMountinfo(t *testing.T) {
	const info = `29 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw,discard
412 29 0:57 / /run/a\040b/rootfs rw shared:2 master:3 - overlay overlay rw,lowerdir=/x/m::/x/objects::/x/fuse,upperdir=/u,workdir=/w
413 29 0:58 / /mnt rw - fuse.x none
`
	got, err := parseMountinfo(strings.NewReader(info))
	if err != nil {
		t.Fatal(err)
	}
	want := []mountpoint{
		{"/", "ext4", "rw,discard"},
		{"/run/a b/rootfs", "overlay", "rw,lowerdir=/x/m::/x/objects::/x/fuse,upperdir=/u,workdir=/w"},
		{"/mnt", "fuse.x", ""},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, bad := range []string{"x", "1 2 3 4 - ext4"} {
		if _, err := parseMountinfo(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestHasLower(t *testing.T) {
	for options, want := range map[string]bool{
		"rw,lowerdir=/x/m::/x/objects::/x/fuse,upperdir=/u": true,
		"ro,lowerdir+=/x/m,datadir+=/x/objects":             true,
		"rw,lowerdir=/x/objects2:/y,upperdir=/x/objects":    false,
		"": false,
	} {
		if got := hasLower(options, "/x/objects"); got != want {
			t.Errorf("%q: %v", options, got)
		}
	}
}
