package layer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
)

func sampleTOC(t testing.TB) *TOC {
	t.Helper()
	return readTOC(t, gzipLayer(t, sample(), estargz.WithChunkSize(50_000)))
}

func readTOC(t testing.TB, blob []byte) *TOC {
	t.Helper()
	toc, err := ReadTOC(context.Background(), &memory{b: blob}, "")
	if err != nil {
		t.Fatal(err)
	}
	return toc
}

func TestIndexHoldsTOC(t *testing.T) {
	toc := sampleTOC(t)
	x := indexOf(t, toc)
	if x.Format() != Gzip || x.TOCDigest() != toc.Digest || x.BlobSize() != toc.BlobSize || x.PrefetchSize() != toc.PrefetchSize || x.Len() != len(toc.Objects) {
		t.Errorf("%+v", x.header)
	}
	var total int64
	for _, o := range toc.Objects {
		total += o.Size
		v, ok := x.Find(o.Key)
		if !ok || !reflect.DeepEqual(v.Object(), o) {
			t.Errorf("%v: found %v, %v", o.Key, ok, o)
		}
		if k, ok := x.FindID(o.Key.ID()); !ok || k != o.Key {
			t.Errorf("%v: by ID %v", o.Key, k)
		}
		for near := range 32 {
			other := o.Key
			other[near] ^= 1
			if _, ok := x.Find(other); ok {
				t.Errorf("%v is found", other)
			}
			if _, ok := x.FindID(other.ID()); ok != (near >= 8) {
				t.Errorf("%v by ID: %v", other, ok)
			}
		}
		for _, c := range o.Chunks {
			if i, j := v.ChunkAt(c.Offset), v.ChunkAt(c.Offset+c.Size-1); i != j || v.Chunk(i) != c {
				t.Errorf("%v: chunks %d and %d hold %v", o.Key, i, j, c)
			}
		}
	}
	if x.Bytes() != total {
		t.Errorf("%d bytes, want %d", x.Bytes(), total)
	}
	var keys []Key
	for o := range x.All() {
		keys = append(keys, o.Key())
	}
	if len(keys) != x.Len() || !slices.IsSortedFunc(keys, func(a, b Key) int { return bytes.Compare(a[:], b[:]) }) {
		t.Error("keys are not all, or not sorted")
	}
	for range x.All() {
		break
	}
	if n := testing.AllocsPerRun(100, func() {
		o, _ := x.Find(keys[3])
		_ = o.Chunk(o.ChunkAt(o.Size() - 1))
		x.FindID(keys[3].ID())
	}); n != 0 {
		t.Errorf("finding allocates %v times", n)
	}
}

func TestIndexOfNothing(t *testing.T) {
	toc, err := ReadTOC(context.Background(), &memory{b: blobWith(t, entries())}, "")
	if err != nil {
		t.Fatal(err)
	}
	x := indexOf(t, toc)
	if _, ok := x.Find(Key{}); ok || x.Len() != 0 {
		t.Error("something is in it")
	}
}

func TestLoadEntries(t *testing.T) {
	for _, blob := range [][]byte{gzipLayer(t, sample()), zstdLayer(t, sample())} {
		toc, err := ReadTOC(context.Background(), &memory{b: blob}, "")
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "new", "directory")
		for range 2 { // the second time it is replaced
			if err := Save(dir, toc); err != nil {
				t.Fatal(err)
			}
		}
		again, err := LoadEntries(context.Background(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(again, toc.Entries) {
			t.Error("other entries")
		}
		if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
			t.Errorf("%v, %v", files, err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := LoadEntries(ctx, dir); !errors.Is(err, context.Canceled) || errors.Is(err, ErrDamaged) {
			t.Errorf("cancelled: got %v", err)
		}
	}
	if err := Save(t.TempDir(), &TOC{}); err == nil {
		t.Error("a TOC of nowhere was saved")
	}
	for _, load := range []func(string) error{load, loadEntries} {
		if err := load(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("no index: got %v", err)
		}
	}
}

func load(dir string) error {
	x, err := Load(dir)
	if err != nil {
		return err
	}
	return x.Close()
}

func loadEntries(dir string) error {
	_, err := LoadEntries(context.Background(), dir)
	return err
}

// TestDamagedIndex changes each part of a small index, and cuts it everywhere.
func TestDamagedIndex(t *testing.T) {
	toc, err := ReadTOC(context.Background(), &memory{b: blobWith(t, entries(
		`{"name":"a","type":"reg","size":5,"offset":1,"chunkDigest":"`+d+`"}`))}, "")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := Save(dir, toc); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, indexName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tables := headerSize + objectSize + chunkSize
	write := func(b []byte) {
		t.Helper()
		// A file that is mapped must not be changed in place.
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for at := range good {
		bad := bytes.Clone(good)
		bad[at] ^= 0x10
		write(bad)
		if err := load(dir); errors.Is(err, ErrDamaged) != (at < tables) {
			t.Errorf("Load after damage at %d: %v", at, err)
		}
		err := loadEntries(dir)
		if errors.Is(err, ErrDamaged) == (at >= headerSize && at < tables) {
			t.Errorf("LoadEntries after damage at %d: %v", at, err)
		}
	}
	for n := 0; n < len(good); n += 7 {
		write(good[:n])
		if err := load(dir); !errors.Is(err, ErrDamaged) {
			t.Errorf("Load of %d bytes: %v", n, err)
		}
		if err := loadEntries(dir); !errors.Is(err, ErrDamaged) {
			t.Errorf("LoadEntries of %d bytes: %v", n, err)
		}
	}
}

// reseal gives an index file the checksums that it must have.
func reseal(b []byte) {
	if len(b) < headerSize {
		return
	}
	h := header{objects: int(binary.LittleEndian.Uint32(b[hObjects:])), chunks: int(binary.LittleEndian.Uint32(b[hChunks:]))}
	if end := h.tablesEnd(); end <= int64(len(b)) {
		binary.LittleEndian.PutUint32(b[hTables:], checksum(b[headerSize:end]))
	}
	binary.LittleEndian.PutUint32(b[hChecksum:], checksum(b[hTables:headerSize]))
}

// TestForgedIndex has indexes that are wrong in spite of their checksums.
func TestForgedIndex(t *testing.T) {
	var buf writerAt
	if err := writeIndex(&buf, sampleTOC(t)); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	objects := int(le.Uint64(buf.b[hObjects:]))
	object := func(i int) int { return headerSize + i*objectSize }
	chunk := func(i int) int { return headerSize + objects*objectSize + i*chunkSize }
	for name, change := range map[string]func(b []byte){
		"more objects than chunks": func(b []byte) { le.PutUint64(b[hObjects:], 1<<40) },
		"negative objects":         func(b []byte) { le.PutUint64(b[hObjects:], 1<<63) },
		"fewer chunks":             func(b []byte) { le.PutUint64(b[hChunks:], le.Uint64(b[hChunks:])-1) },
		"unsorted":                 func(b []byte) { b[object(0)] = 0xff },
		"other size":               func(b []byte) { b[object(0)+oSize]++ },
		"other first chunk":        func(b []byte) { b[object(1)+oFirstChunk]++ },
		"no chunks":                func(b []byte) { le.PutUint32(b[object(0)+oChunks:], 0) },
		"too many chunks":          func(b []byte) { le.PutUint32(b[object(0)+oChunks:], 1<<31) },
		"chunk elsewhere":          func(b []byte) { b[chunk(0)+cOffset]++ },
		"empty chunk":              func(b []byte) { le.PutUint32(b[chunk(0)+cSize:], 0) },
		"huge chunk":               func(b []byte) { le.PutUint32(b[chunk(0)+cSize:], 1<<31) },
		"chunk behind the payload": func(b []byte) { le.PutUint64(b[chunk(0)+cBlobOffset:], 1<<40) },
		"negative chunk":           func(b []byte) { le.PutUint64(b[chunk(0)+cBlobOffset:], 1<<63) },
		"chunk of no stream":       func(b []byte) { le.PutUint64(b[chunk(0)+cBlobSize:], 0) },
		"far within its stream":    func(b []byte) { le.PutUint32(b[chunk(0)+cInnerOffset:], 1<<31) },
		"TOC behind the blob":      func(b []byte) { le.PutUint64(b[hBlobSize:], 1) },
		"TOC of another length":    func(b []byte) { b[hTOCEnd]-- },
		"payload behind the TOC":   func(b []byte) { le.PutUint64(b[hPayload:], le.Uint64(b[hTOCEnd:])) },
	} {
		b := bytes.Clone(buf.b)
		change(b)
		reseal(b)
		if _, err := parseIndex(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	reseal(buf.b)
	if _, err := parseIndex(buf.b); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

// writerAt is a file in memory.
type writerAt struct{ b []byte }

func (w *writerAt) WriteAt(p []byte, off int64) (int, error) {
	if n := int(off) + len(p); n > len(w.b) {
		w.b = append(w.b, make([]byte, n-len(w.b))...)
	}
	return copy(w.b[off:], p), nil
}

func TestKeys(t *testing.T) {
	// The encoding of objects of more than one chunk is on the disks of users:
	// it does not change without another keyDomain.
	two := []Chunk{{Size: 3, Digest: [32]byte{1}}, {Offset: 3, Size: 4, Digest: [32]byte{2}}}
	const want = "94ca70561c414bdf6d64706ceac544a7d874f44e01f3566f5916e82e0c2a9431"
	k := keyOf(two)
	if k.String() != want {
		t.Errorf("got %v", k)
	}
	if keyOf(two[:1]) != Key(two[0].Digest) {
		t.Error("the key of one chunk is not its digest")
	}
	other := slices.Clone(two)
	other[0].Size, other[1].Size = 4, 3
	if keyOf(other) == k {
		t.Error("other sizes have the same key")
	}
	slices.Reverse(two)
	if keyOf(two) == k {
		t.Error("another order has the same key")
	}
}
