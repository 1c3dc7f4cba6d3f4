package blockstest

import (
	"os"
	"testing"

	"github.com/ipfs/go-cid"
)

// Damage writes zeros over the later half of a block, on the disk of a store
// that tells where it keeps it.
func Damage(t testing.TB, s interface {
	Where(c cid.Cid) (file string, offset, size int64, ok bool)
}, c cid.Cid,
) {
	t.Helper()
	file, offset, size, ok := s.Where(c)
	if !ok {
		t.Fatalf("%s is not held", c)
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, size-size/2), offset+size/2); err != nil {
		t.Fatal(err)
	}
}
