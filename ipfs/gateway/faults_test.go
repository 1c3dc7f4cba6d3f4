package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

// Whatever the first gateway does, the second gives the block, in a time that
// is bounded by what the first does.
func TestTheNextGives(t *testing.T) {
	b := blockstest.Random(t, 1, 1000)
	other := blockstest.Random(t, 2, 1000)
	for name, tt := range map[string]struct {
		first  answerer
		within time.Duration
	}{
		"404":            {status(404), 0},
		"410":            {status(410), 0},
		"504":            {status(504), 0},
		"451":            {status(451), 0},
		"401":            {status(401), 0},
		"429":            {status(429, "Retry-After", "5"), 0},
		"503":            {status(503), 0},
		"500":            {status(500), 0},
		"reset":          {fails, 0},
		"hangs":          {hangs, startHedge},
		"is slow":        {gives(5*time.Second, b), startHedge},
		"drips":          {sends(drips), startHedge},
		"another block":  {sends(bytesOf(other.RawData())), 0},
		"part of it":     {sends(bytesOf(b.RawData()[:500])), 0},
		"too much":       {sends(endless), 0},
		"says too much":  {saysTooMuch, 0},
		"a page":         {status(200, "Content-Type", "text/html; charset=utf-8"), 0},
		"a strange type": {status(200, "Content-Type", ";;;"), 0},
		"redirects away": {status(302, "Location", "https://elsewhere.test/ipfs/"), 0},
		"redirects down": {status(302, "Location", "http://first.example/ipfs/"), 0},
		"redirects on":   {status(302, "Location", "https://x.first.example/ipfs/"), 0},
		"redirects to ?": {status(302, "Location", "file:///etc/passwd"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, map[string]answerer{"first": tt.first, "second": gives(0, b), "x": status(302, "Location", "https://x.first.example/")},
				func(t *testing.T, w *world, c *Client) {
					c.servers = c.servers[:2]
					start := time.Now()
					if err := getAll(t.Context(), c, b.Cid()); err != nil {
						t.Fatal(err)
					}
					if took := time.Since(start); took > tt.within {
						t.Errorf("took %v, want %v at most", took, tt.within)
					}
					if w.asked("first") != 1 || w.asked("second") != 1 || w.asked("x") > maxRedirects {
						t.Errorf("%v", w.requests)
					}
				})
		})
	}
}

func saysTooMuch(r *http.Request) (*http.Response, error) {
	resp := response(r, http.StatusOK, reader{r.Context(), drips})
	resp.ContentLength = ipfs.MaxBlockSize + 1
	return resp, nil
}

func bytesOf(data []byte) body {
	return func(_ context.Context, p []byte) (int, error) {
		n := copy(p, data)
		data = data[n:]
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
}

func endless(_ context.Context, p []byte) (int, error) { return len(p), nil }

// With one gateway that never gives the block, the Get ends in bounded time and
// says why.
func TestEnds(t *testing.T) {
	b := blockstest.Random(t, 1, 1000)
	for name, tt := range map[string]struct {
		only   answerer
		within time.Duration
		tries  int
		why    string
	}{
		"404":      {status(404), 0, 1, "404 Not Found"},
		"hangs":    {hangs, timeout, 2, "nothing arrived for 20s"},
		"drips":    {sends(drips), timeout, 2, "nothing arrived for 20s"},
		"endless":  {sends(endless), 0, 1, "more than the 2097152 bytes"},
		"fails":    {fails, 3 * firstBackoff, maxTries, "connection reset"},
		"503":      {status(503), 3 * firstBackoff, maxTries, "503 Service Unavailable"},
		"429 soon": {status(429, "Retry-After", "2"), 4 * time.Second, maxTries, "429 Too Many Requests, it is to be left alone for 2s"},
		"429 late": {status(429, "Retry-After", "3600"), 0, 1, "429 Too Many Requests, it is to be left alone for 5m0s"},
		"a lie":    {sends(bytesOf([]byte("x"))), 0, 1, "wrong bytes"},
		"long why": {func(*http.Request) (*http.Response, error) { return nil, errors.New(strings.Repeat("x", 10_000)) }, time.Second, maxTries, "xxx"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, map[string]answerer{"only": tt.only}, func(t *testing.T, w *world, c *Client) {
				start := time.Now()
				err := getAll(t.Context(), c, b.Cid())
				var u *ipfs.UnavailableError
				if !errors.As(err, &u) || !slices.Equal(u.CIDs, []cid.Cid{b.Cid()}) || !strings.Contains(err.Error(), "https://only.example") ||
					!strings.Contains(err.Error(), tt.why) || len(err.Error()) > 1000 {
					t.Errorf("%v; want %q", err, tt.why)
				}
				if took := time.Since(start); took > tt.within {
					t.Errorf("took %v, want %v at most", took, tt.within)
				}
				if n := w.asked("only"); n != tt.tries {
					t.Errorf("asked %d times, want %d", n, tt.tries)
				}
			})
		})
	}
}

// A gateway that asks for it is left alone for that time, and asked then.
func TestRetryAfter(t *testing.T) {
	b := blockstest.Random(t, 1, 1000)
	for name, header := range map[string]func() string{
		"seconds": func() string { return "7" },
		"date":    func() string { return time.Now().Add(7 * time.Second).UTC().Format(http.TimeFormat) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, map[string]answerer{"only": nil}, func(t *testing.T, w *world, c *Client) {
				busy := time.Now().Add(7 * time.Second)
				w.set("only", func(r *http.Request) (*http.Response, error) {
					if time.Now().Before(busy) {
						return response(r, 429, nil, "Retry-After", header()), nil
					}
					return gives(0, b)(r)
				})
				if err := getAll(t.Context(), c, b.Cid()); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(busy); took < 0 || took > time.Second || w.asked("only") != 2 {
					t.Errorf("asked %d times; had it %v after it was told", w.asked("only"), took)
				}
			})
		})
	}
}

// Wrong bytes: never asked again, said once.
func TestLiar(t *testing.T) {
	var bs []blocks.Block
	var cids []cid.Cid
	for i := range 50 {
		bs = append(bs, blockstest.Random(t, uint64(i), 100))
		cids = append(cids, bs[i].Cid())
	}
	lie := func(r *http.Request) (*http.Response, error) {
		time.Sleep(time.Millisecond)
		return response(r, 200, strings.NewReader("lie"), "Content-Type", rawBlock), nil
	}
	inWorld(t, map[string]answerer{"honest": gives(time.Second, bs...), "liar": lie}, func(t *testing.T, w *world, c *Client) {
		var log bytes.Buffer
		c.log = slog.New(slog.NewTextHandler(&log, nil))
		if err := getAll(t.Context(), c, cids...); err != nil {
			t.Fatal(err)
		}
		before := w.asked("liar")
		time.Sleep(24 * time.Hour)
		if err := getAll(t.Context(), c, cids...); err != nil {
			t.Fatal(err)
		}
		if before == 0 || w.asked("liar") != before {
			t.Errorf("the liar was asked %d times, then %d", before, w.asked("liar"))
		}
		if n := strings.Count(log.String(), "liar.example"); n != 1 {
			t.Errorf("%d lines name the liar:\n%s", n, log.String())
		}
		err := getAll(t.Context(), c, blockstest.Random(t, 1000, 10).Cid())
		if err == nil || !strings.Contains(err.Error(), "liar.example (it sent wrong bytes") {
			t.Errorf("%v", err)
		}
	})
}

// A gateway that became slow is soon asked for less than the fast one, and the
// reader does not feel it; one that is fast again is found out.
func TestTheFasterIsAsked(t *testing.T) {
	var bs []blocks.Block
	for i := range 400 {
		bs = append(bs, blockstest.Random(t, uint64(i), 100))
	}
	inWorld(t, map[string]answerer{"a": gives(10*time.Millisecond, bs...), "b": gives(10*time.Millisecond, bs...)}, func(t *testing.T, w *world, c *Client) {
		read := func(bs []blocks.Block) {
			t.Helper()
			for _, b := range bs { // one after the other
				if err := getAll(t.Context(), c, b.Cid()); err != nil {
					t.Fatal(err)
				}
			}
		}
		read(bs[:100])
		w.set("a", gives(3*time.Second, bs...))
		before, start := w.asked("a"), time.Now()
		read(bs[100:200])
		if n, took := w.asked("a")-before, time.Since(start); n > 20 || took > 3*time.Second {
			t.Errorf("100 blocks in %v, the slow one asked %d times", took, n)
		}
		w.set("a", gives(time.Millisecond, bs...))
		before = w.asked("a")
		for _, b := range bs[200:] {
			read([]blocks.Block{b})
			time.Sleep(5 * time.Second)
		}
		if n := w.asked("a") - before; n < 50 {
			t.Errorf("the fast one was asked for %d of 200 blocks", n)
		}
	})
}

// A gateway that fails is asked less and less often, and again once it works.
func TestBackoff(t *testing.T) {
	b := blockstest.Random(t, 1, 100)
	inWorld(t, map[string]answerer{"down": fails, "up": gives(time.Second, b)}, func(t *testing.T, w *world, c *Client) {
		for range 3600 {
			if err := getAll(t.Context(), c, b.Cid()); err != nil {
				t.Fatal(err)
			}
		}
		if n := w.asked("down"); n < 20 || n > 150 {
			t.Errorf("asked %d times in an hour", n)
		}
		w.set("down", gives(0, b))
		w.set("up", fails)
		time.Sleep(maxBackoff)
		if err := getAll(t.Context(), c, b.Cid()); err != nil {
			t.Error(err)
		}
	})
}

// What nobody waits for leaves room for what somebody waits for.
func TestDemandDoesNotWaitForBulk(t *testing.T) {
	b := blockstest.Random(t, 1, 100)
	var cids []cid.Cid
	for i := range 100 {
		cids = append(cids, blockstest.Random(t, uint64(10+i), 10).Cid())
	}
	answer := func(r *http.Request) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, b.Cid().String()) {
			return gives(0, b)(r)
		}
		return hangs(r)
	}
	inWorld(t, map[string]answerer{"only": answer}, func(t *testing.T, w *world, c *Client) {
		ctx, cancel := context.WithCancel(t.Context())
		var over sync.WaitGroup
		over.Go(func() {
			_ = c.Get(ctx, ipfs.Want{CIDs: cids, Bulk: true}, func(cid.Cid, []byte) error { return nil })
		})
		synctest.Wait()
		if n := w.asked("only"); n != defaultBulk {
			t.Errorf("%d bulk requests at once", n)
		}
		start := time.Now()
		if err := getAll(t.Context(), c, b.Cid()); err != nil || time.Since(start) > 0 {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		cancel()
		over.Wait()
	})
}

// All hang: the Get ends in its time, with what each was asked for.
func TestAllHang(t *testing.T) {
	inWorld(t, map[string]answerer{"a": hangs, "b": hangs, "c": hangs, "d": hangs}, func(t *testing.T, w *world, c *Client) {
		start := time.Now()
		err := getAll(t.Context(), c, blockstest.Random(t, 1, 10).Cid(), blockstest.Random(t, 2, 10).Cid())
		var u *ipfs.UnavailableError
		if !errors.As(err, &u) || len(u.CIDs) != 2 || len(u.Asked) != 4 || time.Since(start) > timeout {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		for _, name := range []string{"a", "b", "c", "d"} {
			if w.asked(name) == 0 {
				t.Errorf("%s was not asked", name)
			}
		}
	})
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "soon": 0, "-1": 0, "1.5": 0,
		"99999": maxToldTime, strings.Repeat("9", 100): maxToldTime,
		now.Add(time.Minute).Format(http.TimeFormat):     time.Minute,
		now.Add(-time.Minute).Format(http.TimeFormat):    0,
		now.Add(100 * time.Hour).Format(http.TimeFormat): maxToldTime,
	} {
		if got := retryAfter(header, now); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, s := range []string{"", "7", "99999999999999999999", now.Add(time.Minute).Format(http.TimeFormat), "Fri, 31 Dec 9999 23:59:59 GMT"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := retryAfter(s, now)
		if got < 0 || got > maxToldTime {
			t.Errorf("%q: %v", s, got)
		}
		if n, err := strconv.Atoi(s); err == nil && n >= 0 && n <= 300 && s[0] != '+' && got != time.Duration(n)*time.Second && s != "-0" {
			t.Errorf("%q: %v", s, got)
		}
	})
}
