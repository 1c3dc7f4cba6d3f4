package names

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/atomicfile"
)

var (
	// ErrKeyExists is returned where a key would be made over another one.
	ErrKeyExists = errors.New("there is a key of that name")
	// ErrNoKey is returned for a key that is not there.
	ErrNoKey = errors.New("there is no key of that name")
	// ErrBadKeyName is returned for what cannot name a key.
	ErrBadKeyName = errors.New("not a name for a key: want 1 to 128 bytes without '/', and not \"self\"")
)

const (
	selfKey    = "self"
	maxKeyName = 128 // bytes
	keyPrefix  = "key_"
)

// keystore keeps keys as Kubo does, so that they can be carried over: one file
// each, named by its name in base32.
type keystore struct {
	dir  string
	self crypto.PrivKey
	mu   sync.Mutex
}

var keyNames = base32.StdEncoding.WithPadding(base32.NoPadding)

func openKeystore(dir string, self crypto.PrivKey) (*keystore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("names: keys: %w", err)
	}
	return &keystore{dir: dir, self: self}, nil
}

func (k *keystore) path(name string) (string, error) {
	if name == "" || len(name) > maxKeyName || strings.Contains(name, "/") || name == selfKey {
		return "", fmt.Errorf("names: key %.140q: %w", name, ErrBadKeyName)
	}
	return filepath.Join(k.dir, keyPrefix+strings.ToLower(keyNames.EncodeToString([]byte(name)))), nil
}

func (k *keystore) generate(name string) (crypto.PrivKey, error) {
	path, err := k.path(name)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("names: key %q: %w", name, ErrKeyExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("names: key %q: %w", name, err)
	}
	sk, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("names: key %q: %w", name, err)
	}
	raw, err := crypto.MarshalPrivateKey(sk)
	if err != nil {
		return nil, fmt.Errorf("names: key %q: %w", name, err)
	}
	if err := atomicfile.Write(path, raw, 0o600); err != nil {
		return nil, fmt.Errorf("names: key %q: %w", name, err)
	}
	return sk, nil
}

// get returns a key by its name, or by the IPNS name that it makes.
func (k *keystore) get(name string) (crypto.PrivKey, error) {
	if name == selfKey {
		return k.self, nil
	}
	sk, err := k.read(name)
	if !errors.Is(err, ErrNoKey) {
		return sk, err
	}
	want, perr := parseName(name)
	if perr != nil {
		return nil, err
	}
	list, lerr := k.list()
	if lerr != nil {
		return nil, lerr
	}
	for _, other := range list {
		sk := k.self
		if other != selfKey {
			if sk, lerr = k.read(other); lerr != nil {
				return nil, lerr
			}
		}
		if id, err := nameOf(sk); err == nil && id.Equal(want) {
			return sk, nil
		}
	}
	return nil, err
}

func (k *keystore) read(name string) (crypto.PrivKey, error) {
	path, err := k.path(name)
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("names: key %q: %w", name, ErrNoKey)
	}
	if err != nil {
		return nil, fmt.Errorf("names: key %q: %w", name, err)
	}
	sk, err := crypto.UnmarshalPrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("names: key %q: %s is damaged: %w", name, path, err)
	}
	return sk, nil
}

// list returns the names of the keys, sorted, "self" first.
func (k *keystore) list() ([]string, error) {
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return nil, fmt.Errorf("names: keys: %w", err)
	}
	var out []string
	for _, e := range entries {
		s, ok := strings.CutPrefix(e.Name(), keyPrefix)
		if !ok {
			continue
		}
		if name, err := keyNames.DecodeString(strings.ToUpper(s)); err == nil { // else it is not one of ours
			out = append(out, string(name))
		}
	}
	slices.Sort(out)
	return append([]string{selfKey}, out...), nil
}
