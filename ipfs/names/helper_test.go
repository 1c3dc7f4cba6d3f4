package names

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"testing"

	"github.com/ipfs/boxo/ipns"
	"github.com/libp2p/go-libp2p/core/crypto"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	first  = "/ipfs/bafkreic2tszstr447mgmr3slu47e5judrld46g6oplkyx7px2dpnx6zeqi"
	second = "/ipfs/bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
)

var errAlone = errors.New("nobody is there")

// network keeps records as peers do, and checks nothing.
type network struct {
	mu    sync.Mutex
	alone bool
	all   map[string][]byte
	puts  int
	gets  int
}

func newNetwork() *network { return &network{all: make(map[string][]byte)} }

func (n *network) PutValue(_ context.Context, key string, value []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.alone {
		return errAlone
	}
	n.puts++
	n.all[key] = value
	return nil
}

func (n *network) GetValue(_ context.Context, key string) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gets++
	if v := n.all[key]; v != nil && !n.alone {
		return v, nil
	}
	return nil, errAlone
}

// change does something while nobody asks.
func (n *network) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// counts returns how often it was asked to keep a record, and for one.
func (n *network) counts() (puts, gets int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.puts, n.gets
}

// record returns the record that it keeps.
func (n *network) record(id ipns.Name) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.all[string(id.RoutingKey())]
}

func newKey(t testing.TB) crypto.PrivKey {
	t.Helper()
	sk, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return sk
}

func open(t testing.TB, dir string, net *network) *Names {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	n, err := Open(Config{Dir: dir, Self: newKey(t), Records: net, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func publish(t testing.TB, n *Names, value string, o PublishOptions) string {
	t.Helper()
	name, err := n.Publish(t.Context(), value, o)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func wantValue(t testing.TB, n *Names, name, value string) Resolved {
	t.Helper()
	r, err := n.Resolve(t.Context(), name)
	if err != nil || r.Value != value {
		t.Errorf("Resolve: %+v, %v; want %s", r, err, value)
	}
	return r
}
