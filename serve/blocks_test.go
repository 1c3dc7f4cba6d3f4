package serve_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

func TestBlockPutAndStat(t *testing.T) {
	d := start(t)
	resp, text := d.postForm(t, "/api/v0/block/put", []byte("hello world"), []byte("hello\n"))
	want := `{"Key":"bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e","Size":11}` + "\n" +
		`{"Key":"bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am","Size":6}` + "\n"
	if resp.StatusCode != http.StatusOK || text != want {
		t.Errorf("block/put: %s %s, want %s", resp.Status, text, want)
	}
	resp, text = d.post(t, "/api/v0/block/stat?arg=bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am", nil)
	if want := `{"Key":"bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am","Size":6}` + "\n"; resp.StatusCode != http.StatusOK || text != want {
		t.Errorf("block/stat: %s %s, want %s", resp.Status, text, want)
	}
	for _, tt := range []struct {
		path string
		data []byte
	}{
		{"/api/v0/block/put", make([]byte, ipfs.MaxBlockSize+1)},
		{"/api/v0/block/put?mhtype=md5", []byte("x")},
		{"/api/v0/block/put?cid-codec=git-raw", []byte("x")},
	} {
		if resp, text := d.postForm(t, tt.path, tt.data); resp.StatusCode < 400 {
			t.Errorf("%s of %d bytes: %s %s", tt.path, len(tt.data), resp.Status, text)
		}
	}
}

func TestDagImport(t *testing.T) {
	d := start(t)
	a, b, c := blockstest.Random(t, 1, 1000), blockstest.Random(t, 2, 2000), blockstest.Random(t, 3, 10)
	lie, err := blocks.NewBlockWithCid([]byte("other"), b.Cid())
	if err != nil {
		t.Fatal(err)
	}
	root := func(c cid.Cid, msg string) string {
		return fmt.Sprintf(`{"Root":{"Cid":{"/":"%s"},"PinErrorMsg":"%s"}}`+"\n", c, msg)
	}
	good := carOf(t, []cid.Cid{a.Cid()}, a, b)
	for _, tt := range []struct {
		name   string
		args   url.Values
		files  [][]byte
		status int
		want   string
	}{
		{"roots", nil, [][]byte{good}, 200, root(a.Cid(), "")},
		{"stats", url.Values{"stats": {"true"}}, [][]byte{good}, 200, root(a.Cid(), "") + `{"Stats":{"BlockBytesCount":3000,"BlockCount":2}}` + "\n"},
		{"no pin", url.Values{"pin-roots": {"false"}}, [][]byte{good}, 200, ""},
		{"silent", url.Values{"silent": {"true"}, "stats": {"true"}}, [][]byte{good}, 200, ""},
		{"two CARs", nil, [][]byte{good, carOf(t, []cid.Cid{b.Cid()})}, 200, root(a.Cid(), "") + root(b.Cid(), "")},
		{"bad flag", url.Values{"stats": {"maybe"}}, [][]byte{good}, 400, "stats"},
		{"no file", nil, nil, 400, "form"},
		{"no CAR", nil, [][]byte{[]byte("no CAR at all")}, 400, "CAR"},
		{"empty file", nil, [][]byte{{}}, 400, "unexpected EOF"},
		{"cut", nil, [][]byte{good[:len(good)-1]}, 400, "unexpected EOF"},
		{"block that lies", nil, [][]byte{carOf(t, []cid.Cid{a.Cid()}, a, lie)}, 400, "does not match its CID"},
		{"block over the limit", nil, [][]byte{carOf(t, []cid.Cid{a.Cid()}, blockstest.Random(t, 4, ipfs.MaxBlockSize+1))}, 400, "too large"},
		{"section far over the limit", nil, [][]byte{carOf(t, []cid.Cid{a.Cid()}, blockstest.Random(t, 4, ipfs.MaxBlockSize+1000))}, 400, "section"},
		{"header over the limit", nil, [][]byte{{0xff, 0xff, 0xff, 0xff, 0x7f}}, 400, "header"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, text := d.postForm(t, "/api/v0/dag/import?"+tt.args.Encode(), tt.files...)
			if resp.StatusCode != tt.status || tt.status == 200 && text != tt.want || !strings.Contains(text, tt.want) {
				t.Errorf("%s %s, want %d %s", resp.Status, text, tt.status, tt.want)
			}
		})
	}
	resp, text := d.postForm(t, "/api/v0/dag/import", carOf(t, []cid.Cid{c.Cid()}, a))
	if resp.StatusCode != http.StatusOK || !strings.Contains(text, `"PinErrorMsg":"it is not whole in the CAR`) || !strings.Contains(text, c.Cid().String()) {
		t.Errorf("a root that is nowhere: %s %s", resp.Status, text)
	}
	if ok, err := d.Has(t.Context(), c.Cid()); ok || err != nil {
		t.Errorf("Has: %v, %v", ok, err)
	}
}
