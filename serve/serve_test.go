package serve_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/storage"
	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/image"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/node"
	"github.com/ipfs-stargz/ipfs-stargz/serve"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon is a node behind the RPC on a unix socket, and a client of it.
type daemon struct {
	*node.Node
	dir    string
	client *kubo.Client
	addr   string
}

func start(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{dir: t.TempDir()}
	var err error
	// A listed peer that never comes, so that a Get has somebody to wait for.
	const nobody = "/p2p/12D3KooWQQe2yFFNE4iqMz1HFBhd2CGN4f5XD9MgB4YNBLyjsqt8"
	d.Node, err = node.Open(t.Context(), node.Config{
		Dir: d.dir, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Peers: []string{nobody}, FetchTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	d.addr, d.client = listen(t, serve.NewHandler(serve.Config{
		Store: d, Pins: d.Local(), Repo: d.Local(), Parts: image.Parts, Swarm: d, Version: "1.2.3", Commit: "abc",
	}))
	return d
}

// listen serves a handler on a unix socket.
func listen(t *testing.T, h http.Handler) (addr string, client *kubo.Client) {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	if client, err = kubo.New("/unix"+sock, kubo.WithTimeout(30*time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(client.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return "/unix" + sock, client
}

// The conformance suite: client, socket, RPC, node.
func TestSuite(t *testing.T) {
	blockstest.Run(t, func(t *testing.T) blockstest.Fixture {
		d := start(t)
		return blockstest.Fixture{
			Blocks: d.client,
			Put: func(t testing.TB, bs ...blocks.Block) {
				if err := d.Put(t.Context(), bs...); err != nil {
					t.Fatal(err)
				}
			},
			Plant: func(t testing.TB, c cid.Cid, data []byte) {
				name := cid.NewCidV1(cid.Raw, c.Hash()).String()
				path := filepath.Join(d.dir, "blocks", name[len(name)-3:len(name)-1], name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

// A file goes in as a CAR and comes out by cat, from any offset.
func TestImportAndCat(t *testing.T) {
	d := start(t)
	data := blockstest.Random(t, 1, 20<<20+17).RawData()
	var root cid.Cid
	// The root is not known before the end, so it is pinned by a second call.
	err := d.client.ImportCAR(t.Context(), nil, func(put ipfs.PutFunc) (err error) {
		root, _, err = importer.File(t.Context(), bytes.NewReader(data), put)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.client.ImportCAR(t.Context(), []cid.Cid{root}, func(ipfs.PutFunc) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int64{{0, -1}, {0, 0}, {0, 1}, {256<<10 - 1, 2}, {5 << 20, 9 << 20}, {20 << 20, 100}, {20<<20 + 17, 1}, {1 << 40, 1}} {
		off, n := r[0], r[1]
		body, err := d.client.Cat(t.Context(), "/ipfs/"+root.String(), off, n)
		if err != nil {
			t.Fatalf("%v: %v", r, err)
		}
		got, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil {
			t.Errorf("%v: %v", r, err)
		}
		want := data[min(off, int64(len(data))):]
		if n >= 0 {
			want = want[:min(n, int64(len(want)))]
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%v: %d bytes, want %d", r, len(got), len(want))
		}
	}
	// And by leaf table through the client.
	f, err := ipfs.OpenFile(t.Context(), d.client, t.TempDir(), root, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1<<20)
	if _, err := f.ReadAt(t.Context(), p, 3<<20); err != nil || !bytes.Equal(p, data[3<<20:4<<20]) {
		t.Errorf("ReadAt: %v", err)
	}
}

// Several goroutines may put into one import.
func TestImportConcurrentPut(t *testing.T) {
	d := start(t)
	var bs []blocks.Block
	for i := range 200 {
		bs = append(bs, blockstest.Random(t, uint64(i), 5000))
	}
	root := bs[7].Cid()
	err := d.client.ImportCAR(t.Context(), []cid.Cid{root}, func(put ipfs.PutFunc) error {
		errs := make([]error, 8)
		var wg sync.WaitGroup
		for g := range errs {
			wg.Go(func() {
				for i := g; i < len(bs); i += 4 { // each block twice
					errs[g] = errors.Join(errs[g], put(t.Context(), bs[i%len(bs)]))
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bs {
		if ok, err := d.Has(t.Context(), b.Cid()); !ok || err != nil {
			t.Errorf("Has %s: %v, %v", b.Cid(), ok, err)
		}
	}
}

// post sends a request as any HTTP client may.
// answer is what is left of a response whose body was read.
type answer struct {
	Status     string
	StatusCode int
	Header     http.Header
}

func (d *daemon) post(t *testing.T, path string, body io.Reader, header ...string) (answer, string) {
	t.Helper()
	return d.do(t, http.MethodPost, path, body, header...)
}

func (d *daemon) do(t *testing.T, method, path string, body io.Reader, header ...string) (answer, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(d.addr, "/unix"))
	}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://x"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.Status, resp.StatusCode, resp.Header}, string(text)
}

// form makes a body of files, as curl -F does.
func form(t *testing.T, files ...[]byte) (body io.Reader, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i, data := range files {
		p, err := w.CreateFormFile("file", fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b, w.FormDataContentType()
}

func (d *daemon) postForm(t *testing.T, path string, files ...[]byte) (answer, string) {
	t.Helper()
	body, contentType := form(t, files...)
	return d.post(t, path, body, "Content-Type", contentType)
}

func carOf(t *testing.T, roots []cid.Cid, bs ...blocks.Block) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := storage.NewWritable(&b, roots, car.WriteAsCarV1(true))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range bs {
		if err := w.Put(t.Context(), x.Cid().KeyString(), x.RawData()); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestRefuses(t *testing.T) {
	d := start(t)
	b := blockstest.Random(t, 1, 100)
	if err := d.Put(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	get := "/api/v0/block/get?arg=" + b.Cid().String()
	for _, tt := range []struct {
		name, method, path string
		header             []string
		status             int
	}{
		{"good", "POST", get, nil, 200},
		{"curl", "POST", get, []string{"User-Agent", "curl/8.0"}, 200},
		{"GET", "GET", get, nil, 405},
		{"OPTIONS", "OPTIONS", get, nil, 405},
		{"origin", "POST", get, []string{"Origin", "https://evil.example"}, 403},
		{"null origin", "POST", get, []string{"Origin", "null"}, 403},
		{"referer", "POST", get, []string{"Referer", "https://evil.example/x"}, 403},
		{"browser", "POST", get, []string{"User-Agent", "Mozilla/5.0"}, 403},
		{"unknown command", "POST", "/api/v0/shutdown", nil, 404},
		{"no arg", "POST", "/api/v0/block/get", nil, 400},
		{"no CID", "POST", "/api/v0/block/get?arg=hello", nil, 400},
		{"path below", "POST", "/api/v0/cat?arg=" + b.Cid().String() + "/a/b", nil, 400},
		{"negative offset", "POST", "/api/v0/cat?offset=-1&arg=" + b.Cid().String(), nil, 400},
		{"bad length", "POST", "/api/v0/cat?length=many&arg=" + b.Cid().String(), nil, 400},
		{"bad timeout", "POST", get + "&timeout=soon", nil, 400},
		{"import without a form", "POST", "/api/v0/dag/import", nil, 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, text := d.do(t, tt.method, tt.path, nil, tt.header...)
			if resp.StatusCode != tt.status {
				t.Errorf("%s: %q, want %d", resp.Status, text, tt.status)
			}
			if tt.status == 400 && !(strings.Contains(text, `"Message":"`) && strings.Contains(text, `"Type":"error"`)) {
				t.Errorf("%q is not Kubo's form of an error", text)
			}
			if allow := resp.Header.Get("Allow"); tt.status == 405 && allow != "POST" {
				t.Errorf("Allow: %q", allow)
			}
		})
	}
}

func TestMissingBlock(t *testing.T) {
	d := start(t)
	c := blockstest.Random(t, 1, 100).Cid().String()
	for _, path := range []string{"block/get?arg=", "block/stat?arg=", "cat?arg=", "cat?timeout=100ms&arg="} {
		resp, text := d.post(t, "/api/v0/"+path+c, nil)
		if resp.StatusCode != http.StatusInternalServerError || !strings.Contains(text, `"Code":0,"Type":"error"`) {
			t.Errorf("%s: %s %s", path, resp.Status, text)
		}
		if !strings.Contains(path, "timeout") && !strings.Contains(text, c) {
			t.Errorf("%s: %s does not name the CID", path, text)
		}
	}
}

// A file whose later leaves are missing breaks off, and says so.
func TestCatBreaksOff(t *testing.T) {
	d := start(t)
	m := blockstest.NewMemory()
	root, size, err := importer.File(t.Context(), bytes.NewReader(blockstest.Random(t, 1, 10<<20).RawData()), m.Put)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ipfs.OpenFile(t.Context(), m, "", root, size)
	if err != nil {
		t.Fatal(err)
	}
	for l := range f.Leaves() {
		if l.Offset >= 8<<20 {
			m.Delete(l.CID)
		}
	}
	have := []cid.Cid{root}
	for l := range f.Leaves() {
		if l.Offset < 8<<20 {
			have = append(have, l.CID)
		}
	}
	err = m.Get(t.Context(), ipfs.Want{CIDs: have}, func(c cid.Cid, data []byte) error {
		b, err := blocks.NewBlockWithCid(data, c)
		if err != nil {
			return err
		}
		return d.Put(t.Context(), b)
	})
	if err != nil {
		t.Fatal(err)
	}
	body, err := d.client.Cat(t.Context(), root.String(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err == nil || len(got) != 8<<20 || !strings.Contains(err.Error(), "unavailable") {
		t.Errorf("%d bytes, %v; want 8 MiB and an error", len(got), err)
	}
}
