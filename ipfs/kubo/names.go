package kubo

import (
	"context"
	"net/url"
	"strconv"
)

// Key is a key of IPNS that the daemon keeps.
type Key struct {
	Name string
	ID   string `json:"Id"` // the name that it makes, "k51…"
}

// Keys lists the daemon's keys.
func (c *Client) Keys(ctx context.Context) ([]Key, error) {
	var v struct{ Keys []Key }
	err := c.ask(ctx, "key/list", nil, &v)
	return v.Keys, err
}

// EnsureKey has the daemon make an ed25519 key unless it has one of that name.
func (c *Client) EnsureKey(ctx context.Context, name string) error {
	keys, err := c.Keys(ctx)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.Name == name {
			return nil
		}
	}
	return c.ask(ctx, "key/gen", url.Values{"arg": {name}, "type": {"ed25519"}}, &Key{})
}

// Published is the answer of [Client.Publish].
type Published struct {
	Name  string // "k51…"
	Value string // "/ipfs/CID"
	// Later says that no peer took the record yet: the daemon keeps it, and
	// publishes it when one is there. (Only our daemon says so.)
	Later bool
}

// Publish has the name of a key stand for a path, "/ipfs/CID". It is no error
// if nobody is there to hear of it.
func (c *Client) Publish(ctx context.Context, key, path string) (Published, error) {
	var v Published
	err := c.ask(ctx, "name/publish", url.Values{"arg": {path}, "key": {key}, "allow-offline": {strconv.FormatBool(true)}}, &v)
	return v, err
}

// Resolve returns the path that a name ("k51…") stands for. Stale says that it
// is the last one the daemon knows of, for nobody answered.
func (c *Client) Resolve(ctx context.Context, name string) (path string, stale bool, err error) {
	var v struct {
		Path  string
		Stale bool
	}
	err = c.ask(ctx, "name/resolve", url.Values{"arg": {name}}, &v)
	return v.Path, v.Stale, err
}
