package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/config"
	"github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/prefetch"
	"github.com/ipfs-stargz/ipfs-stargz/image"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/node"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store"
	"github.com/ipfs-stargz/ipfs-stargz/serve"
	"github.com/ipfs-stargz/ipfs-stargz/snapshotter"
)

// stopTimeout is for how long requests under way may go on after SIGTERM.
const stopTimeout = 10 * time.Second

func serveCommand() *cobra.Command {
	var path, root, address string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon: containerd's snapshotter and an IPFS node",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			if root != "" {
				cfg.Root = root
			}
			if address != "" {
				cfg.Address = address
			}
			if err := cfg.Check(); err != nil {
				return err
			}
			log, err := newLog(cfg.Log, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return run(cmd.Context(), cfg, log)
		},
	}
	cmd.Flags().StringVar(&path, "config", config.DefaultPath, "configuration `file`")
	cmd.Flags().StringVar(&root, "root", "", "`directory` of everything that is kept (default: from the configuration)")
	cmd.Flags().StringVar(&address, "address", "", "`socket` for containerd (default: from the configuration)")
	return cmd
}

func newLog(cfg config.Log, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return slog.New(slog.NewTextHandler(w, opts)), nil
}

// run is the daemon: what it opens it closes in the opposite order, when ctx
// ends or anything fails.
func run(ctx context.Context, cfg config.Config, log *slog.Logger) (err error) {
	closing := func(what string, close func() error) {
		if cerr := close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("close %s: %w", what, cerr))
		}
	}
	if err := os.MkdirAll(cfg.Root, 0o711); err != nil {
		return err
	}
	lock, err := lockRoot(cfg.Root)
	if err != nil {
		return err
	}
	defer closing("root", lock.Close)

	// The sockets first: they tell at once that another daemon has them.
	grpcSocket, err := listenUnix(cfg.Address)
	if err != nil {
		return err
	}
	defer grpcSocket.Close()
	apiSocket, err := listenUnix(cfg.API.Address)
	if err != nil {
		return err
	}
	defer apiSocket.Close()
	metricsSocket, err := listenMetrics(cfg.Metrics.Address)
	if err != nil {
		return fmt.Errorf("metrics.address: %w", err)
	}
	if metricsSocket != nil {
		defer metricsSocket.Close()
	}

	n, err := node.Open(ctx, node.Config{
		Dir:          filepath.Join(cfg.Root, "ipfs"),
		Mode:         node.Mode(cfg.IPFS.Mode),
		Listen:       cfg.IPFS.Listen,
		Announce:     cfg.IPFS.Announce,
		Peers:        cfg.IPFS.Peers,
		SwarmKeyFile: cfg.IPFS.SwarmKey,
		NoDHT:        !cfg.IPFS.DHT,
		MDNS:         cfg.IPFS.MDNS,
		Bootstrap:    cfg.IPFS.Bootstrap,
		Routers:      cfg.IPFS.Routers,
		FetchTimeout: time.Duration(cfg.IPFS.FetchTimeout),
		Store:        store.Options{Budget: int64(cfg.IPFS.Budget), KeepFree: cfg.IPFS.KeepFreePercent},
		Log:          log,
	})
	if err != nil {
		return err
	}
	defer closing("IPFS node", n.Close)
	if cfg.IPFS.Mode == string(node.Private) && len(cfg.IPFS.Peers) == 0 && cfg.IPFS.SwarmKey == "" {
		log.Warn("this node talks to nobody: name nodes in ipfs.peers, or give all of yours one ipfs.swarm_key")
	}

	from, err := openSources(cfg.IPFS, n, log)
	if err != nil {
		return err
	}
	defer closing("sources", from.Close)

	tables := n.Tables()
	files, err := fs.New(ctx, fs.Config{
		Root:           cfg.Root,
		Open:           opener(from, tables),
		Mode:           cfg.FS.Mode,
		SmallObject:    int64(cfg.FS.SmallObject),
		LookupPatience: time.Duration(cfg.FS.LookupPatience),
		StateFiles:     cfg.FS.StateFiles,
		Cache: cache.Options{
			Budget:   int64(cfg.Cache.Budget),
			KeepFree: cfg.Cache.KeepFreePercent,
			Scrub:    time.Duration(cfg.Cache.Scrub),
		},
		Prefetch: prefetch.Config{
			Head:        cfg.Prefetch.Head,
			Background:  cfg.Prefetch.Background,
			Rate:        int64(cfg.Prefetch.Rate),
			Concurrency: cfg.Prefetch.Concurrency,
			Quiet:       time.Duration(cfg.Prefetch.Quiet),
		},
		Log: log,
	})
	if err != nil {
		return err
	}
	defer closing("layers", files.Close)

	sn, err := snapshotter.New(snapshotter.Config{
		Root:           cfg.Root,
		Lazy:           files,
		Mounter:        files,
		Finder:         image.NewFinder(from),
		ResolveTimeout: time.Duration(cfg.Snapshotter.ResolveTimeout),
		Log:            log,
	})
	if err != nil {
		return err
	}
	defer closing("snapshotter", sn.Close)

	grpcServer := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(grpcServer, snapshotservice.FromSnapshotter(sn))
	state := stateOf(n, files, from)
	metrics := metricsHandler(state, log)
	api := serve.NewHandler(serve.Config{
		Store: reading{n, from}, Pins: n.Local(), Repo: n.Local(), Parts: image.Parts,
		Swarm: n, Peers: n, Names: n.Names(), Version: version, Log: log,
		Status: func(context.Context) (any, error) { return state() }, Metrics: metrics,
	})
	apiServer := &http.Server{Handler: api, ReadHeaderTimeout: stopTimeout}
	metricsServer := &http.Server{Handler: onlyMetrics(metrics), ReadHeaderTimeout: stopTimeout}

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return grpcServer.Serve(grpcSocket) })
	serveHTTP := func(s *http.Server, l net.Listener) {
		g.Go(func() error {
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	serveHTTP(apiServer, apiSocket)
	if metricsSocket != nil {
		serveHTTP(metricsServer, metricsSocket)
	}
	g.Go(func() error {
		<-ctx.Done()
		notify(log, daemon.SdNotifyStopping)
		log.Info("stopping")
		forced := time.AfterFunc(stopTimeout, grpcServer.Stop)
		grpcServer.GracefulStop()
		forced.Stop()
		timeout, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		var errs []error
		for _, s := range []*http.Server{apiServer, metricsServer} {
			if s.Shutdown(timeout) != nil {
				errs = append(errs, s.Close())
			}
		}
		return errors.Join(errs...)
	})
	log.Info("serving", "address", cfg.Address, "api", cfg.API.Address, "root", cfg.Root, "peer", n.ID(), "listen", n.Addrs())
	notify(log, daemon.SdNotifyReady)
	return g.Wait()
}

func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("cannot tell the service manager", "state", state, "error", err)
	}
}

// opener opens a layer's blob in IPFS. Its leaf table is kept in dir, so that
// opening it again asks nothing of the network.
func opener(blocks ipfs.Blocks, dir string) fs.Opener {
	return func(ctx context.Context, s string) (layer.Source, error) {
		c, err := cid.Decode(s)
		if err != nil {
			return nil, fmt.Errorf("CID %q: %w", s, err)
		}
		f, err := ipfs.OpenFile(ctx, blocks, dir, c, maxLayerBytes)
		if err != nil {
			return nil, err
		}
		return blob{f}, nil
	}
}

// blob is a layer's blob. What is read of it in the background is read in bulk.
type blob struct{ *ipfs.File }

// ReadAt implements [layer.Source].
func (b blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return b.ReadInto(ctx, int64(len(p)), off, func() []byte { return p })
}

// ReadInto implements [layer.LateSource].
func (b blob) ReadInto(ctx context.Context, n, off int64, room func() []byte) (int, error) {
	var how ipfs.Want
	how.Raised, how.Bulk = layer.Background(ctx)
	return b.File.ReadInto(ctx, n, off, room, how)
}

// maxLayerBytes bounds a layer's blob. The largest that registries take are far
// below.
const maxLayerBytes = 1 << 40

// listenUnix listens on a unix socket that only root can open. A socket that a
// dead daemon left is replaced, one that is answered is not.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("listen on %s: another process serves this socket (stop it, or configure another one)", path)
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("listen on %s: there is something that is no socket (remove it, or configure another path)", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
	}
	// Made under another name: nobody can connect before it is root's alone.
	tmp := path + ".tmp"
	_ = os.Remove(tmp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &unlinking{Listener: l, path: path}, nil
}

// unlinking removes its socket when it is closed for the first time; later
// there may be another daemon's.
type unlinking struct {
	net.Listener
	path string
	once sync.Once
}

func (u *unlinking) Close() error {
	u.once.Do(func() { _ = os.Remove(u.path) })
	return u.Listener.Close()
}
