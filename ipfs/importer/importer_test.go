package importer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	chunk "github.com/ipfs/boxo/chunker"
	mdtest "github.com/ipfs/boxo/ipld/merkledag/test"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

// The CIDs of the short texts are those that Kubo's own documentation and tests
// have for `ipfs add --cid-version=1`; the others were computed by an encoder
// of dag-pb and UnixFS written from their specifications alone.
func TestImportKnownAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		data   io.Reader
		root   string
		size   int64
		blocks int
	}{
		{"empty", strings.NewReader(""), "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", 0, 1},
		{"hello world", strings.NewReader("hello world"), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e", 11, 1},
		{"hello world with newline", strings.NewReader("hello world\n"), "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4", 12, 1},
		{"hello", strings.NewReader("hello\n"), "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am", 6, 1},
		{"Hello IPFS", strings.NewReader("Hello IPFS\n"), "bafkreidfdrlkeq4m4xnxuyx6iae76fdm4wgl5d4xzsb77ixhyqwumhz244", 11, 1},
		{"1 MiB of zeros", bytes.NewReader(make([]byte, 1<<20)), "bafybeiggzq4ryi7hscq5hzvzcnk4urnxt3asp37dhgvnjilf7exskximla", 1 << 20, 2},
		{"300 KiB of zeros", bytes.NewReader(make([]byte, 300<<10)), "bafybeiaifoq5av24zrf655vsp5q6jbpmgetopf7dkohpvvw3deb6dpe5yq", 300 << 10, 3},
		{"1,000,000 bytes i mod 251", bytes.NewReader(counting(1e6)), "bafybeibx62obrkybp46hx3ivh53q4rnptgkunpgtwiib5lfelfgt2ekihm", 1e6, 5},
		{"175 leaves and a byte", bytes.NewReader(make([]byte, 175*256<<10+1)), "bafybeicyowx3udu4hzfyo2ekfduhsfhirbv5j2uhcuyz4zh53vrbx2jdfa", 175*256<<10 + 1, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := blockstest.NewMemory()
			root, size, err := importer.File(t.Context(), tt.data, m.Put)
			if err != nil {
				t.Fatal(err)
			}
			if root.String() != tt.root || size != tt.size || m.Len() != tt.blocks {
				t.Errorf("got %s, %d bytes, %d blocks; want %s, %d, %d", root, size, m.Len(), tt.root, tt.size, tt.blocks)
			}
		})
	}
}

func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

// What fits in one leaf is named by its SHA-256, which the layers above count on.
func TestImportOneLeaf(t *testing.T) {
	data := blockstest.Random(t, 1, 256<<10).RawData()
	root, _, err := importer.File(t.Context(), bytes.NewReader(data), blockstest.NewMemory().Put)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	mh, err := multihash.Encode(sum[:], multihash.SHA2_256)
	if err != nil {
		t.Fatal(err)
	}
	if want := cid.NewCidV1(cid.Raw, mh); root != want {
		t.Errorf("root %s, want %s", root, want)
	}
}

func TestImportChildrenFirst(t *testing.T) {
	m := blockstest.NewMemory()
	put := func(ctx context.Context, b blocks.Block) error {
		if err := ipfs.Verify(b.Cid(), b.RawData()); err != nil {
			t.Error(err)
		}
		if b.Cid().Type() == cid.DagProtobuf && m.Len() == 0 {
			t.Error("an inner node came before any leaf")
		}
		return m.Put(ctx, b)
	}
	data := blockstest.Random(t, 1, 175*256<<10+1) // one leaf more than a node has links
	root, size, err := importer.File(t.Context(), iotest.HalfReader(bytes.NewReader(data.RawData())), put)
	if err != nil || size != int64(len(data.RawData())) {
		t.Fatalf("%d bytes, %v", size, err)
	}
	if want := 176 + 3; m.Len() != want { // 174 and 2 leaves below two nodes, and a root
		t.Errorf("%d blocks, want %d", m.Len(), want)
	}
	f, err := ipfs.OpenFile(t.Context(), m, "", root, size)
	if err != nil || f.NumLeaves() != 176 {
		t.Fatalf("OpenFile: %d leaves, %v", f.NumLeaves(), err)
	}
}

func TestImportErrors(t *testing.T) {
	mine := errors.New("mine")
	m := blockstest.NewMemory()
	if _, _, err := importer.File(t.Context(), iotest.ErrReader(mine), m.Put); !errors.Is(err, mine) {
		t.Errorf("reader's error: %v", err)
	}
	// A file that is cut off is no file that ends.
	cut := io.MultiReader(strings.NewReader("x"), iotest.ErrReader(io.ErrUnexpectedEOF))
	if _, _, err := importer.File(t.Context(), cut, m.Put); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is cut off: %v", err)
	}
	if _, _, err := importer.ByProfile(t.Context(), "kubo", strings.NewReader("x"), m.Put); !errors.Is(err, importer.ErrProfile) {
		t.Errorf("unknown profile: %v", err)
	}
	fail := func(context.Context, blocks.Block) error { return mine }
	if _, _, err := importer.File(t.Context(), strings.NewReader("x"), fail); !errors.Is(err, mine) {
		t.Errorf("put's error: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := importer.File(ctx, strings.NewReader("x"), m.Put); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}

// TestImportProfile compares with boxo's own importer and its own idea of the
// profile, whose values stand in IPIP-499.
func TestImportProfile(t *testing.T) {
	p := uio.UnixFS_v1_2025
	for _, size := range []int{0, 1, 1 << 20, 1<<20 + 1, 5_000_000} {
		data := counting(size)
		root, n, err := importer.ByProfile(t.Context(), importer.UnixFS2025, bytes.NewReader(data), blockstest.NewMemory().Put)
		if err != nil || n != int64(size) {
			t.Fatalf("%d of %d bytes, %v", n, size, err)
		}
		params := helpers.DagBuilderParams{
			Dagserv: mdtest.Mock(), RawLeaves: p.RawLeaves, Maxlinks: p.FileDAGWidth,
			CidBuilder: cid.V1Builder{Codec: cid.DagProtobuf, MhType: p.MhType},
		}
		builder, err := params.New(chunk.NewSizeSplitter(bytes.NewReader(data), p.ChunkSize))
		if err != nil {
			t.Fatal(err)
		}
		want, err := balanced.Layout(builder)
		if err != nil {
			t.Fatal(err)
		}
		if root != want.Cid() {
			t.Errorf("%d bytes: root %s, boxo's is %s", size, root, want.Cid())
		}
	}
	for p, want := range map[importer.Profile]error{"": nil, importer.UnixFS2025: nil, "unixfs-v0-2015": importer.ErrProfile} {
		if err := p.Check(); !errors.Is(err, want) {
			t.Errorf("profile %q: %v", p, err)
		}
	}
}
