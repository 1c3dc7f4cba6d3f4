package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/ipfs-stargz/ipfs-stargz/config"
)

func TestParse(t *testing.T) {
	cfg := config.Default()
	err := config.Parse([]byte(`
root = "/data/ipfs-stargz"
[log]
level = "debug"
[ipfs]
peers = ["/ip4/10.0.0.1/tcp/4001/p2p/12D3KooW"]
fetch_timeout = "1m30s"
[fs]
small_object = "64KiB"
state_files = true
[prefetch]
head = false
rate = "20MiB"
quiet = "1s"
`), &cfg)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Root != "/data/ipfs-stargz" || cfg.Log.Level != "debug" || len(cfg.IPFS.Peers) != 1 {
		t.Errorf("not read as written: %+v", cfg)
	}
	if got := time.Duration(cfg.IPFS.FetchTimeout); got != 90*time.Second {
		t.Errorf("fetch_timeout = %v", got)
	}
	if cfg.FS.SmallObject != 64<<10 {
		t.Errorf("small_object = %d", cfg.FS.SmallObject)
	}
	if !cfg.FS.StateFiles || config.Default().FS.StateFiles {
		t.Errorf("state_files = %t, by default %t", cfg.FS.StateFiles, config.Default().FS.StateFiles)
	}
	if p := cfg.Prefetch; p.Head || !p.Background || p.Rate != 20<<20 || p.Concurrency != 4 || time.Duration(p.Quiet) != time.Second {
		t.Errorf("prefetch = %+v", p)
	}
	if cfg.Address != config.Default().Address || cfg.Log.Format != "text" {
		t.Errorf("what the file leaves out is not the default: %+v", cfg)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct{ toml, want string }{
		"unknown key":            {"rot = '/x'", `"rot" (line 1)`},
		"unknown key in a table": {"[ipfs]\n\npears = []", `"ipfs.pears" (line 3)`},
		"two of them":            {"a = 1\nb = 2", `"b" (line 2)`},
		"wrong type":             {"[ipfs]\npeers = 3", "line 2"},
		"no duration":            {"[ipfs]\nfetch_timeout = 'soon'", "soon"},
		"no size":                {"[fs]\nsmall_object = 'big'", "big"},
		"negative duration":      {"[fs]\nlookup_patience = '-1s'", "fs.lookup_patience"},
		"negative rate":          {"[prefetch]\nrate = '-1'", "-1"},
		"no concurrency":         {"[prefetch]\nconcurrency = 0", "prefetch.concurrency"},
		"much concurrency":       {"[prefetch]\nconcurrency = 65", "prefetch.concurrency"},
		"negative quiet":         {"[prefetch]\nquiet = '-1s'", "prefetch.quiet"},
		"metrics without a port": {"[metrics]\naddress = 'localhost'", "metrics.address"},
		"negative budget":        {"[cache]\nbudget = '-1'", "cache.budget"},
		"too much left free":     {"[cache]\nkeep_free_percent = 100", "cache.keep_free_percent"},
		"negative scrub":         {"[cache]\nscrub = '-1h'", "cache.scrub"},
		"no TOML":                {"root", "line 1"},
		"relative root":          {"root = 'here'", "absolute"},
		"root with a colon":      {"root = '/a:b'", "mount options"},
		"long socket":            {"address = '/" + strings.Repeat("x", 120) + "'", "107"},
		"mode":                   {"[ipfs]\nmode = 'open'", "ipfs.mode"},
		"fs mode":                {"[fs]\nmode = 'fast'", "fs.mode"},
		"log level":              {"[log]\nlevel = 'loud'", "log.level"},
		"log format":             {"[log]\nformat = 'xml'", "log.format"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config.Default()
			err := config.Parse([]byte(c.toml), &cfg)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v does not contain %q", err, c.want)
			}
		})
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	if _, err := config.Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a missing file that was asked for: %v", err)
	}
	if err := os.WriteFile(path, []byte("bad ="), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a bad file: %v", err)
	}
}

// TestDefaultsAreWhatTheyPrint checks that the defaults, written out, are a
// configuration, and the same one.
func TestDefaultsAreWhatTheyPrint(t *testing.T) {
	b, err := toml.Marshal(config.Default())
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Config{}
	if err := config.Parse(b, &cfg); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	again, err := toml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if string(again) != string(b) {
		t.Errorf("defaults changed on the way:\n%s\nbecame\n%s", b, again)
	}
}

// TestManual holds the file in the manual against the defaults.
func TestManual(t *testing.T) {
	manual, err := os.ReadFile(filepath.Join("..", "docs", "config.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(manual), "```toml\n")
	file, _, ok := strings.Cut(after, "```")
	if !ok {
		t.Fatal("the manual has no file in it")
	}
	var cfg config.Config
	if err := config.Parse([]byte(file), &cfg); err != nil {
		t.Fatal(err)
	}
	want, err := toml.Marshal(config.Default())
	if err != nil {
		t.Fatal(err)
	}
	got, err := toml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("the manual says\n%s\nthe defaults are\n%s", got, want)
	}
}

func FuzzParse(f *testing.F) {
	b, err := toml.Marshal(config.Default())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("[ipfs]\nfetch_timeout = 3"))
	f.Fuzz(func(t *testing.T, b []byte) {
		cfg := config.Default()
		if config.Parse(b, &cfg) == nil && !filepath.IsAbs(cfg.Root) {
			t.Errorf("accepted a relative root %q", cfg.Root)
		}
	})
}
