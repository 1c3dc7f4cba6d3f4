// Package config is the daemon's configuration: one TOML file, every setting
// with a default, keys that nobody knows refused by name. Only commands read
// it; packages below take what they need as arguments.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"
)

// DefaultPath is where the configuration is looked for. It need not exist.
const DefaultPath = "/etc/ipfs-stargz/config.toml"

// Config is the whole configuration. The comments are its manual.
type Config struct {
	// Root is the directory of everything that is kept: blocks, cache, layers,
	// snapshots, the node's identity. It must be on a file system that can be
	// below overlayfs (ext4, xfs, btrfs).
	Root string `toml:"root"`
	// Address is the unix socket that containerd's proxy_plugins entry names.
	Address string `toml:"address"`

	Log         Log         `toml:"log"`
	API         API         `toml:"api"`
	Metrics     Metrics     `toml:"metrics"`
	IPFS        IPFS        `toml:"ipfs"`
	Cache       Cache       `toml:"cache"`
	FS          FS          `toml:"fs"`
	Prefetch    Prefetch    `toml:"prefetch"`
	Snapshotter Snapshotter `toml:"snapshotter"`
}

// Log is how the daemon logs, on stderr.
type Log struct {
	Level  string `toml:"level"`  // debug, info, warn, error
	Format string `toml:"format"` // text or json
}

// API is the subset of Kubo's RPC that our own commands use.
type API struct {
	// Address is its unix socket. Whoever can open it can add and read
	// everything, so it is for root alone.
	Address string `toml:"address"`
}

// Metrics is where figures for Prometheus are served, by GET /metrics. They are
// on the API's socket in any case.
type Metrics struct {
	// Address is a TCP address as "127.0.0.1:9464"; empty for none. Who can
	// connect to it learns which images this node has.
	Address string `toml:"address"`
}

// IPFS is the embedded node, and the other sources of blocks.
type IPFS struct {
	// Mode is who may learn which images are read here: [ModePrivate] (only the
	// peers listed, or those with the swarm key, and no service of the public
	// network) or [ModePublic] (this is a node of the IPFS network).
	Mode string `toml:"mode"`
	// Listen holds the multiaddrs to listen on; none: the node only dials.
	Listen []string `toml:"listen"`
	// Announce holds the multiaddrs that peers are told instead, behind a NAT
	// or a load balancer.
	Announce []string `toml:"announce"`
	// Peers holds the multiaddrs of nodes to stay connected to: with /p2p/ID
	// that node; without, and with a swarm key, all that answer at the
	// addresses of a name of the DNS. In private mode without a swarm key the
	// nodes listed by id are the only ones that are talked to.
	Peers []string `toml:"peers"`
	// SwarmKey is the file of a private network's key, in Kubo's format. With
	// it every node that has the key may connect, and none that has not.
	SwarmKey string `toml:"swarm_key"`
	// Budget is how many bytes of blocks are kept; those that were not used for
	// longest go first, and pinned ones never. 0: no limit.
	Budget Size `toml:"budget"`
	// KeepFreePercent is how much of the file system is left free: below it no
	// block is added, and unpinned ones go. Keep it above the kubelet's
	// thresholds (15 by default).
	KeepFreePercent int `toml:"keep_free_percent"`
	// DHT finds who has an image, and keeps names: a DHT of the private
	// network's own, or in public mode that of the IPFS network.
	DHT bool `toml:"dht"`
	// MDNS finds nodes on the local network, and shows this one to it.
	MDNS bool `toml:"mdns"`
	// Bootstrap holds the multiaddrs by which the public DHT is joined; none:
	// those of the IPFS network. Public mode only.
	Bootstrap []string `toml:"bootstrap"`
	// Routers holds the URLs of delegated routers. Public mode only.
	Routers []string `toml:"routers"`
	// FetchTimeout is after how long without a single byte of progress a read
	// fails.
	FetchTimeout Duration `toml:"fetch_timeout"`
	// Sources are asked for blocks in this order: [SourceNode], [SourceKubo],
	// [SourceGateway].
	Sources []string `toml:"sources"`
	// Patience is how long a read waits without progress for one source before
	// the next is asked too.
	Patience Duration `toml:"patience"`

	Kubo    Kubo    `toml:"kubo"`
	Gateway Gateway `toml:"gateway"`
}

// Cache is how much of files' contents is kept.
type Cache struct {
	// Budget is how many bytes of the disk it may occupy; contents of the images
	// that were not used for longest go first, and never what is open. 0: no
	// limit.
	Budget Size `toml:"budget"`
	// KeepFreePercent is how much of the file system is left free: below it no
	// contents are added, and some go.
	KeepFreePercent int `toml:"keep_free_percent"`
	// Scrub is after how long everything is read and verified again. 0: never.
	Scrub Duration `toml:"scrub"`
}

// FS is how files are made available.
type FS struct {
	// Mode is how lazy layers are mounted: "kernel" (names by EROFS and
	// overlayfs, FUSE for contents that are missing), "fuse" (names by
	// FUSE, and contents too where overlayfs cannot look for them), or "auto"
	// (by the kernel where it can).
	Mode string `toml:"mode"`
	// SmallObject is up to which size a file is fetched whole when it is first
	// opened.
	SmallObject Size `toml:"small_object"`
	// LookupPatience is for how long opening a file may wait for that.
	LookupPatience Duration `toml:"lookup_patience"`
	// StateFiles has each image's root hold /.stargz-snapshotter, with a file for
	// each lazy layer that tells how much of it is here.
	StateFiles bool `toml:"state_files"`
}

// Prefetch is what is fetched before anybody reads it.
type Prefetch struct {
	// Head fetches, when an image is pulled, the files that its maker put
	// before the landmark.
	Head bool `toml:"head"`
	// Background fetches the rest, when no container reads.
	Background bool `toml:"background"`
	// Rate is how many bytes of the rest, uncompressed, are fetched in a
	// second. 0: no limit.
	Rate Size `toml:"rate"`
	// Concurrency is how many chunks are fetched at once.
	Concurrency int `toml:"concurrency"`
	// Quiet is for how long no container may have read anything that was
	// missing, before the rest is fetched on.
	Quiet Duration `toml:"quiet"`
}

// Snapshotter is how containerd is answered.
type Snapshotter struct {
	// ResolveTimeout is for how long a pull waits to learn whether a layer can
	// be lazy, before it is fetched whole.
	ResolveTimeout Duration `toml:"resolve_timeout"`
}

// Default returns the configuration of an empty file.
func Default() Config {
	return Config{
		Root:    "/var/lib/ipfs-stargz",
		Address: "/run/ipfs-stargz/ipfs-stargz.sock",
		Log:     Log{Level: "info", Format: "text"},
		API:     API{Address: "/run/ipfs-stargz/api.sock"},
		IPFS: IPFS{
			Mode:            ModePrivate,
			Listen:          []string{"/ip4/0.0.0.0/tcp/4001"},
			Announce:        []string{},
			Peers:           []string{},
			Budget:          Size(64 << 30),
			KeepFreePercent: 20,
			DHT:             true,
			Bootstrap:       []string{},
			Routers:         []string{},
			FetchTimeout:    Duration(30 * time.Second),
			Sources:         []string{SourceNode},
			Patience:        Duration(700 * time.Millisecond),
			Gateway:         Gateway{URLs: []string{}},
		},
		Cache: Cache{
			Budget:          Size(32 << 30),
			KeepFreePercent: 15,
			Scrub:           Duration(7 * 24 * time.Hour),
		},
		FS: FS{
			Mode:           "auto",
			SmallObject:    Size(4 << 20),
			LookupPatience: Duration(time.Second),
		},
		Prefetch: Prefetch{
			Head: true, Background: true,
			Concurrency: 4,
			Quiet:       Duration(200 * time.Millisecond),
		},
		Snapshotter: Snapshotter{ResolveTimeout: Duration(10 * time.Second)},
	}
}

// Load reads the file at path over the defaults, and checks the result. A file
// at [DefaultPath] that does not exist is an empty one.
func Load(path string) (Config, error) {
	cfg := Default()
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && path == DefaultPath:
	case err != nil:
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	if err := Parse(b, &cfg); err != nil {
		return cfg, fmt.Errorf("configuration %s: %w", path, err)
	}
	return cfg, nil
}

// Parse reads TOML into cfg, keeping what it does not set, and checks the
// result.
func Parse(b []byte, cfg *Config) error {
	err := toml.NewDecoder(strings.NewReader(string(b))).DisallowUnknownFields().Decode(cfg)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		var keys []string
		for _, e := range unknown.Errors {
			row, _ := e.Position()
			keys = append(keys, fmt.Sprintf("%q (line %d)", strings.Join(e.Key(), "."), row))
		}
		return fmt.Errorf("unknown key %s: see docs/config.md for those there are", strings.Join(keys, ", "))
	case errors.As(err, &wrong):
		row, col := wrong.Position()
		if key := strings.Join(wrong.Key(), "."); key != "" {
			return fmt.Errorf("line %d, %q: %w", row, key, err)
		}
		return fmt.Errorf("line %d, column %d: %w", row, col, err)
	case err != nil:
		return err
	}
	return cfg.Check()
}

// Check returns what is wrong with a configuration, by the key it is about.
func (c *Config) Check() error {
	for _, p := range []struct{ key, path string }{
		{"root", c.Root}, {"address", c.Address}, {"api.address", c.API.Address},
	} {
		if !filepath.IsAbs(p.path) {
			return fmt.Errorf("%s: %q is no absolute path", p.key, p.path)
		}
	}
	// What the kernel takes: sockaddr_un(7).
	const maxSocket = 107
	for _, s := range []struct{ key, path string }{{"address", c.Address}, {"api.address", c.API.Address}} {
		if len(s.path) > maxSocket {
			return fmt.Errorf("%s: %q is longer than the %d bytes a socket's path can have", s.key, s.path, maxSocket)
		}
	}
	if c.Metrics.Address != "" {
		if _, _, err := net.SplitHostPort(c.Metrics.Address); err != nil {
			return fmt.Errorf("metrics.address: %w", err)
		}
	}
	if strings.ContainsAny(c.Root, ":,\\ \t\n") {
		return fmt.Errorf("root: %q holds a character that mount options cannot (one of :,\\ or white space)", c.Root)
	}
	for _, d := range []struct {
		key string
		d   Duration
	}{
		{"ipfs.fetch_timeout", c.IPFS.FetchTimeout},
		{"fs.lookup_patience", c.FS.LookupPatience},
		{"snapshotter.resolve_timeout", c.Snapshotter.ResolveTimeout},
	} {
		if d.d <= 0 {
			return fmt.Errorf("%s: %v is not more than nothing", d.key, time.Duration(d.d))
		}
	}
	for _, kept := range []struct {
		section string
		budget  Size
		percent int
	}{
		{"ipfs", c.IPFS.Budget, c.IPFS.KeepFreePercent},
		{"cache", c.Cache.Budget, c.Cache.KeepFreePercent},
	} {
		if kept.budget < 0 {
			return fmt.Errorf("%s.budget: %d is less than nothing", kept.section, kept.budget)
		}
		if p := kept.percent; p < 0 || p > 99 {
			return fmt.Errorf("%s.keep_free_percent: %d is not between 0 and 99", kept.section, p)
		}
	}
	if c.Cache.Scrub < 0 {
		return fmt.Errorf("cache.scrub: %v is less than nothing", time.Duration(c.Cache.Scrub))
	}
	if err := c.IPFS.checkSources(); err != nil {
		return err
	}
	switch c.FS.Mode {
	case "auto", "kernel", "fuse":
	default:
		return fmt.Errorf("fs.mode: %q is none of auto, kernel, fuse", c.FS.Mode)
	}
	if err := c.Prefetch.check(); err != nil {
		return err
	}
	switch c.Log.Format {
	case "text", "json":
	default:
		return fmt.Errorf("log.format: %q is neither text nor json", c.Log.Format)
	}
	switch c.Log.Level {
	case "debug", "info", "warn", "error":
	default:
		return fmt.Errorf("log.level: %q is none of debug, info, warn, error", c.Log.Level)
	}
	return nil
}

// maxConcurrency is more than any link needs: the chunks under way are held in
// memory, and stand before a reader that comes.
const maxConcurrency = 64

func (p *Prefetch) check() error {
	if p.Rate < 0 {
		return fmt.Errorf("prefetch.rate: %d is less than nothing (0 sets no limit; background = false fetches nothing)", p.Rate)
	}
	if p.Concurrency < 1 || p.Concurrency > maxConcurrency {
		return fmt.Errorf("prefetch.concurrency: %d is not between 1 and %d (head = false and background = false turn prefetching off)", p.Concurrency, maxConcurrency)
	}
	if p.Quiet < 0 {
		return fmt.Errorf("prefetch.quiet: %v is less than nothing", time.Duration(p.Quiet))
	}
	return nil
}

// Duration is a [time.Duration] written as in "1m30s".
type Duration time.Duration

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Size is a number of bytes written with a binary unit, as in "64MiB".
type Size int64

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *Size) UnmarshalText(b []byte) error {
	v, err := units.RAMInBytes(string(b))
	*s = Size(v)
	return err
}

// MarshalText implements [encoding.TextMarshaler].
func (s Size) MarshalText() ([]byte, error) { return []byte(units.BytesSize(float64(s))), nil }
