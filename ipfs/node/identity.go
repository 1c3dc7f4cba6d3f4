package node

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/atomicfile"
)

// loadIdentity reads the node's private key, or makes one the first time. A
// file that is there but cannot be used is an error: a new identity would
// silently shut the node out of its peers' allow-lists.
func loadIdentity(path string) (crypto.PrivKey, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newIdentity(path)
	}
	if err != nil {
		return nil, fmt.Errorf("node: identity: %w", err)
	}
	key, err := crypto.UnmarshalPrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("node: identity %s is damaged: %w; restore it, or remove it to get a new peer id", path, err)
	}
	return key, nil
}

// newIdentity makes a key and has it on disk before it is used.
func newIdentity(path string) (key crypto.PrivKey, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("node: new identity: %w", err)
		}
	}()
	if key, _, err = crypto.GenerateEd25519Key(rand.Reader); err != nil {
		return nil, err
	}
	raw, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, atomicfile.Write(path, raw, 0o600)
}
