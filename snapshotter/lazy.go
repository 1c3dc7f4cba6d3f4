package snapshotter

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// record is what is kept of a lazy snapshot.
type record struct {
	CID       string `json:"cid"`
	TOCDigest string `json:"toc_digest,omitempty"`
}

// prepareLazy commits the layer that the labels name as a lazy snapshot for
// target, if it can be one. err says why it cannot; it is nil as well when the
// labels name no CID at all.
func (s *Snapshotter) prepareLazy(ctx context.Context, key, parent, target string, labels map[string]string) (committed bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.ResolveTimeout,
		fmt.Errorf("no answer within %v (resolve_timeout)", s.cfg.ResolveTimeout))
	defer cancel()
	rec, err := s.source(ctx, labels)
	if err != nil || rec == nil {
		return false, err
	}

	// Until the snapshot is committed nothing else says that the layer is in use.
	defer s.pending.add(rec.CID)()
	on, err := s.runBelow(ctx, parent)
	if err != nil {
		return false, err
	}
	bytes, names, err := s.cfg.Lazy.Add(ctx, rec.CID, rec.TOCDigest, blobDigest(labels), on)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return false, fmt.Errorf("layer %s: %w", rec.CID, err)
	}

	name, opt := lazyName(target, parent), snapshots.WithLabels(labels)
	err = s.ms.WithTransaction(context.WithoutCancel(ctx), true, func(ctx context.Context) error {
		snap, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, opt)
		if err != nil {
			return err
		}
		if err := s.writeRecord(snap.ID, rec); err != nil {
			return err
		}
		usage := snapshots.Usage{Size: bytes, Inodes: names}
		_, err = storage.CommitActive(ctx, key, name, usage, opt)
		return err
	})
	if errdefs.IsAlreadyExists(err) {
		// Another pull of the same chain was faster; or it is the key that exists.
		if _, serr := s.Stat(context.WithoutCancel(ctx), name); serr == nil {
			err = nil
		}
	}
	if err != nil {
		return false, fmt.Errorf("commit lazy snapshot: %w", err)
	}
	s.cfg.Log.Info("layer is lazy", "target", target, "cid", rec.CID, "names", names)
	return true, nil
}

// runBelow returns the run that a lazy snapshot on parent would join; it is empty
// when parent is a normal one, or none.
func (s *Snapshotter) runBelow(ctx context.Context, parent string) (Run, error) {
	var ids []string
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		for name := parent; name != ""; {
			id, info, _, err := storage.GetInfo(ctx, name)
			if err != nil {
				return fmt.Errorf("parent snapshot: %w", err)
			}
			ids = append(ids, id)
			name = info.Parent
		}
		return nil
	})
	if err != nil {
		return Run{}, err
	}
	parts, err := s.parts(ids)
	if err != nil {
		return Run{}, err
	}
	if len(parts) > 0 && parts[0].run != nil {
		return *parts[0].run, nil
	}
	return Run{Below: dirsOf(parts)}, nil
}

// lazyName is the name that a lazy snapshot is committed under. containerd
// finds it by its label and its parent; so for one target there may be several,
// and for one target and parent, through this name, only one.
func lazyName(target, parent string) string {
	sum := sha256.Sum256([]byte(parent))
	return fmt.Sprintf("lazy/%s/%x", target, sum[:8])
}

func (s *Snapshotter) recordPath(id string) string { return filepath.Join(s.dir(id), "lazy") }

// writeRecord makes the directory of a lazy snapshot. It is on disk before the
// transaction that it belongs to is.
func (s *Snapshotter) writeRecord(id string, rec *record) error {
	if err := os.RemoveAll(s.dir(id)); err != nil {
		return err
	}
	if err := os.Mkdir(s.dir(id), 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(s.recordPath(id), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// record returns the record of a snapshot, nil for a normal one.
func (s *Snapshotter) record(id string) (*record, error) {
	if rec, ok := s.records.Load(id); ok {
		return rec.(*record), nil
	}
	b, err := os.ReadFile(s.recordPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(s.upper(id)); err != nil {
			return nil, fmt.Errorf("snapshot %s is neither lazy nor unpacked: %w", id, err)
		}
		s.records.Store(id, (*record)(nil))
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("record of lazy snapshot %s: %w", id, err)
	}
	rec := new(record)
	if err := json.Unmarshal(b, rec); err != nil || rec.CID == "" {
		return nil, fmt.Errorf("record of lazy snapshot %s is damaged (remove the image and pull it again): %s", id, b)
	}
	s.records.Store(id, rec)
	return rec, nil
}

// pendingSet counts the layers that are being committed.
type pendingSet struct {
	mu sync.Mutex
	n  map[string]int
}

// add counts a layer until the function that it returns is called.
func (p *pendingSet) add(cid string) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n == nil {
		p.n = map[string]int{}
	}
	p.n[cid]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.n[cid]--; p.n[cid] == 0 {
			delete(p.n, cid)
		}
	}
}

func (p *pendingSet) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.n))
}
