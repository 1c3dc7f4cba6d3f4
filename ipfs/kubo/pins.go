package kubo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/stall"
)

// maxLine is how long one line of an answer of many may be, in bytes.
const maxLine = 1 << 20

// Pin is something that a daemon keeps. Of a daemon that is not ours only the
// CID and the name are known.
type Pin struct {
	CID    cid.Cid
	Name   string
	Size   int64 // bytes
	Held   int64 // bytes of these that are with the daemon
	Blocks int
	Time   time.Time
	Error  string // it is damaged; "" if not
}

// Pin has the daemon keep root, and all that it consists of if it is an image,
// under a name, which may be "". What is missing the daemon fetches; progress,
// if not nil, is told how far it is.
func (c *Client) Pin(ctx context.Context, root cid.Cid, name string, progress func(blocks, bytes int64)) error {
	args := url.Values{"arg": {root.String()}, "progress": {"true"}}
	if name != "" {
		args.Set("name", name)
	}
	pinned := false
	err := c.lines(ctx, "pin/add", args, func(line []byte) error {
		var v struct {
			Progress, Bytes int64
			Pins            []string
		}
		if err := json.Unmarshal(line, &v); err != nil {
			return err
		}
		pinned = pinned || len(v.Pins) > 0
		if progress != nil && len(v.Pins) == 0 {
			progress(v.Progress, v.Bytes)
		}
		return nil
	})
	if err == nil && !pinned {
		err = c.failed(ctx, "pin/add", fmt.Errorf("%s was not acknowledged", root))
	}
	return err
}

// Unpin has the daemon no longer keep root.
func (c *Client) Unpin(ctx context.Context, root cid.Cid) error {
	return c.lines(ctx, "pin/rm", url.Values{"arg": {root.String()}}, nil)
}

// Pins lists what the daemon keeps, oldest first.
func (c *Client) Pins(ctx context.Context) ([]Pin, error) {
	list := []Pin{}
	err := c.lines(ctx, "pin/ls", url.Values{"type": {"recursive"}, "names": {"true"}, "stream": {"true"}, "size": {"true"}}, func(line []byte) error {
		var v struct {
			Cid string
			Pin
		}
		if err := json.Unmarshal(line, &v); err != nil {
			return err
		}
		var err error
		if v.CID, err = cid.Decode(v.Cid); err != nil {
			return err
		}
		list = append(list, v.Pin)
		return nil
	})
	return list, err
}

// GC has the daemon remove blocks that nothing pins: those first that were not
// used for longest, until no more than target bytes are held. removed is told
// of each; a daemon that is not ours removes all, and does not know sizes.
func (c *Client) GC(ctx context.Context, target int64, removed func(id cid.Cid, size int64)) error {
	return c.lines(ctx, "repo/gc", url.Values{"to": {strconv.FormatInt(target, 10)}}, func(line []byte) error {
		var v struct {
			Key   map[string]string
			Size  int64
			Error string
		}
		if err := json.Unmarshal(line, &v); err != nil {
			return err
		}
		if v.Error != "" {
			return &Error{Message: v.Error}
		}
		id, err := cid.Decode(v.Key["/"])
		if err != nil {
			return err
		}
		removed(id, v.Size)
		return nil
	})
}

// RepoStat is how much a daemon holds.
type RepoStat struct {
	RepoSize   int64  // bytes
	StorageMax uint64 // bytes; [math.MaxUint64]: no limit
	NumObjects int64
}

// RepoStat tells how much the daemon holds.
func (c *Client) RepoStat(ctx context.Context) (RepoStat, error) {
	var v RepoStat
	err := c.reply(ctx, "repo/stat", &v)
	return v, err
}

// lines calls a command whose answer is a JSON value a line, and fn, if not
// nil, with each. It ends when nothing arrives for the client's timeout: our
// daemon sends an empty line when it has nothing to say.
func (c *Client) lines(ctx context.Context, cmd string, args url.Values, fn func(line []byte) error) error {
	ctx, watch := stall.Start(ctx, c.timeout)
	defer watch.Stop()
	watch.Enter()
	resp, err := c.call(ctx, cmd, args, nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(&touching{resp.Body, watch})
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 || fn == nil {
			continue
		}
		if err := fn(line); err != nil {
			return c.failed(ctx, cmd, err)
		}
	}
	if err := lines.Err(); err != nil {
		return c.failed(ctx, cmd, err)
	}
	if msg := resp.Trailer.Get(streamErrorTrailer); msg != "" {
		return c.failed(ctx, cmd, &Error{Message: msg})
	}
	return nil
}

// touching tells a watch of what is read.
type touching struct {
	io.Reader
	watch *stall.Watch
}

func (t *touching) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	if n > 0 {
		t.watch.Touch()
	}
	return n, err
}
