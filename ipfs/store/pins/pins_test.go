package pins

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

func id(t testing.TB, s string) cid.Cid {
	t.Helper()
	c, err := cid.NewPrefixV1(cid.Raw, multihash.SHA2_256).Sum([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func example(t testing.TB, root string) Pin {
	return Pin{
		Root: id(t, root), Name: "docker.io/library/python:3.13",
		Parts: []cid.Cid{id(t, root), id(t, "layer")}, Time: time.Unix(1_700_000_000, 5).UTC(), Bytes: 12345,
	}
}

func openDir(t testing.TB) *Dir {
	t.Helper()
	d, err := Open(filepath.Join(t.TempDir(), "pins"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRoundTrip(t *testing.T) {
	d := openDir(t)
	p, q := example(t, "a"), example(t, "b")
	q.Time = p.Time.Add(-time.Hour)
	if err := errors.Join(d.Write(p, []uint64{5, 1, 3, 5}), d.Write(q, nil), d.Write(q, []uint64{7})); err != nil {
		t.Fatal(err)
	}
	p.Blocks, q.Blocks = 3, 1
	if got, err := d.Get(p.Root); err != nil || !reflect.DeepEqual(got, p) {
		t.Errorf("Get: %+v, %v; want %+v", got, err, p)
	}
	if list, err := d.List(); err != nil || !reflect.DeepEqual(list, []Pin{q, p}) {
		t.Errorf("List: %+v, %v", list, err)
	}
	set, err := d.Set()
	if err != nil {
		t.Fatal(err)
	}
	for key := range uint64(10) {
		if got, want := set.Has(key), key == 1 || key == 3 || key == 5 || key == 7; got != want {
			t.Errorf("Has(%d) = %v", key, got)
		}
	}
	if err := d.Remove(p.Root); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Get(p.Root); !errors.Is(err, ErrNotPinned) {
		t.Errorf("Get of what was removed: %v", err)
	}
	if err := d.Remove(p.Root); !errors.Is(err, ErrNotPinned) {
		t.Errorf("Remove of what was removed: %v", err)
	}
}

// One DAG has one pin, whatever version its CID is written in.
func TestVersions(t *testing.T) {
	d := openDir(t)
	v1 := cid.NewCidV1(cid.DagProtobuf, id(t, "a").Hash())
	v0 := cid.NewCidV0(v1.Hash())
	if err := d.Write(Pin{Root: v0, Parts: []cid.Cid{v0}}, nil); err != nil {
		t.Fatal(err)
	}
	if p, err := d.Get(v1); err != nil || p.Root != v1 {
		t.Errorf("%+v, %v", p, err)
	}
	if err := d.Remove(v0); err != nil {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	d := openDir(t)
	p := example(t, "a")
	p.Name = strings.Repeat("x", MaxName+1)
	if err := d.Write(p, nil); !errors.Is(err, ErrLimit) {
		t.Errorf("a long name: %v", err)
	}
	p = example(t, "a")
	for i := range MaxParts {
		p.Parts = append(p.Parts, id(t, fmt.Sprint(i)))
	}
	if err := d.Write(p, nil); !errors.Is(err, ErrLimit) {
		t.Errorf("many parts: %v", err)
	}
	p.Parts = p.Parts[1:2]
	if err := d.Write(p, nil); err == nil {
		t.Error("a pin without its root: no error")
	}
	if left, err := os.ReadDir(d.path); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A file that was cut or changed anywhere is damaged: it is listed as such, and
// there is no set.
func TestDamaged(t *testing.T) {
	d := openDir(t)
	p := example(t, "a")
	if err := d.Write(p, []uint64{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	path := d.file(p.Root)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, raw []byte) {
		t.Helper()
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		_, headErr := d.Get(p.Root)
		_, setErr := d.Set() // it needs the keys, and nothing of the description
		if !errors.Is(headErr, ErrDamaged) && !errors.Is(setErr, ErrDamaged) {
			t.Errorf("%s: Get: %v, Set: %v; want it damaged", what, headErr, setErr)
		}
		list, err := d.List()
		if err != nil || len(list) != 1 || list[0].Root != p.Root || (list[0].Err != nil) != (headErr != nil) {
			t.Errorf("%s: List: %+v, %v", what, list, err)
		}
	}
	for n := range good {
		check(fmt.Sprintf("cut to %d", n), good[:n])
		bad := append([]byte{}, good...)
		bad[n] ^= 0x10
		check(fmt.Sprintf("byte %d changed", n), bad)
	}
	check("longer", append(append([]byte{}, good...), 0))
	// A whole file of another pin.
	other, err := encode(example(t, "b"), nil)
	if err != nil {
		t.Fatal(err)
	}
	check("another's", other)
}

// A file with the right checksums, written by somebody else.
func FuzzDecode(f *testing.F) {
	good, err := encode(example(f, "a"), nil)
	if err != nil {
		f.Fatal(err)
	}
	const sums = 2 * sha256.Size
	f.Add(good[:len(good)-sums])
	f.Add([]byte(magic))
	f.Add([]byte(magic + "\x02\x00\x00\x00\xff\xff\xff\xff{}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := sha256.Sum256(body)
		p, err := decode(append(body[:len(body):len(body)], sum[:]...))
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%v is not ErrDamaged", err)
			}
			return
		}
		if err := check(p); err != nil {
			t.Errorf("decoded against the limits: %v", err)
		}
		again, err := encode(p, make([]uint64, p.Blocks))
		if err != nil {
			t.Fatal(err)
		}
		headerLen, _, err := sizes(again)
		if err != nil {
			t.Fatal(err)
		}
		if q, err := decode(again[:fixed+headerLen+sha256.Size]); err != nil || q.Root != p.Root || len(q.Parts) != len(p.Parts) {
			t.Errorf("%+v came back as %+v, %v", p, q, err)
		}
	})
}

// The keys, with the right checksum.
func FuzzDecodeKeys(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}, 2)
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}, 2)
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		n = min(max(n, 0), MaxBlocks)
		sum := sha256.Sum256(body)
		keys, err := decodeKeys(append(body[:len(body):len(body)], sum[:]...), n)
		if err == nil && len(keys) != n*keyBytes || err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes for %d keys, %v", len(keys), n, err)
		}
	})
}
