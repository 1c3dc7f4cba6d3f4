package main

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/chain"
)

// someState has a figure of its own in each field.
func someState() daemonState {
	here := fs.Completion{Objects: 1, TotalObjects: 2, Bytes: 3 << 20, TotalBytes: 4 << 20, Counted: true}
	return daemonState{
		Version: "v9", PeerID: "12D3", Addresses: []string{"/ip4/127.0.0.1/tcp/1/p2p/12D3"}, Peers: []string{"/ip4/10.0.0.1/tcp/1/p2p/12D4"},
		Files: fs.State{
			Mode: "fuse", Why: "because",
			Requests: []fs.Request{{Kind: "lookup", Count: 11, Seconds: 1.5}, {Kind: "open"}},
			Chunks: fs.Chunks{
				Hits: 21, Joined: 22, Raised: 23, Failures: 24, CacheErrors: 25, Passthrough: 26,
				Demand: fs.Fetched{Chunks: 27, Bytes: 28 << 20}, ReadAhead: fs.Fetched{Chunks: 29, Bytes: 30 << 20}, Prefetch: fs.Fetched{Chunks: 31, Bytes: 32 << 20},
			},
			Cache: cache.Usage{
				Bytes: 41 << 20, Objects: 42, PartialBytes: 43, Lingering: 44, Limit: math.MaxInt64,
				EvictedObjects: 45, EvictedBytes: 46, Damaged: 47, Changed: 48, ScrubbedObjects: 49, ScrubbedBytes: 50, Refused: 51,
			},
			Layers: []fs.Layer{
				{CID: "bafkone", Completion: here, Prefetch: "waiting", Reason: "no room"},
				{CID: "bafktwo", Completion: fs.Completion{TotalBytes: 5 << 20}, Prefetch: "off"},
			},
			Images: []fs.Image{{Tree: "/t/m", Layers: []string{"bafkone"}, Mounted: true, Completion: here}},
		},
		Sources: []chain.Given{{Source: "node", Blocks: 61, Bytes: 62 << 20}},
		Blocks:  blocksState{Bytes: 71 << 20, Blocks: 72, Limit: 73 << 20},
	}
}

func TestStatusText(t *testing.T) {
	var out strings.Builder
	if err := someState().write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"v9", "12D3", "/ip4/127.0.0.1/tcp/1/p2p/12D3", "/ip4/10.0.0.1/tcp/1/p2p/12D4", "fuse: because",
		"41MiB in 42 files, without a limit", "71MiB in 72, of 73MiB", "node gave 62MiB in 61 blocks", "11 times lookup",
		"28MiB waited for, 30MiB read ahead, 32MiB prefetched", "47 damaged files", "24 chunks not to be had",
		"bafkone", "3MiB", "4MiB", "waiting: no room", "mounted", "bafktwo", "counting", "5MiB",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("status lacks %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "times open") {
		t.Error("status tells of what never happened")
	}
}

// TestStatusJSON checks that nothing is lost between daemon and command.
func TestStatusJSON(t *testing.T) {
	b, err := json.Marshal(someState())
	if err != nil {
		t.Fatal(err)
	}
	var got daemonState
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(got)
	if err != nil || string(again) != string(b) {
		t.Errorf("%v\n%s\n%s", err, b, again)
	}
	for _, key := range []string{`"peer_id"`, `"mode"`, `"total_bytes"`, `"lingering_bytes"`, `"evicted_objects"`, `"source"`} {
		if !strings.Contains(string(b), key) {
			t.Errorf("no %s in %s", key, b)
		}
	}
}

func TestMetrics(t *testing.T) {
	get := func(h http.Handler) (int, string) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		b, err := io.ReadAll(w.Result().Body)
		if err != nil {
			t.Fatal(err)
		}
		return w.Code, string(b)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	code, text := get(onlyMetrics(metricsHandler(func() (daemonState, error) { return someState(), nil }, log)))
	if code != http.StatusOK {
		t.Errorf("status %d", code)
	}
	for _, want := range []string{
		`ipfs_stargz_info{mode="fuse",version="v9"} 1`, `ipfs_stargz_peers 1`,
		`ipfs_stargz_fuse_request_seconds_count{kind="lookup"} 11`, `ipfs_stargz_fuse_request_seconds_sum{kind="lookup"} 1.5`,
		`ipfs_stargz_chunk_hits_total 21`, `ipfs_stargz_chunk_joins_total 22`, `ipfs_stargz_chunk_raises_total 23`,
		`ipfs_stargz_chunk_failures_total 24`, `ipfs_stargz_chunk_cache_errors_total 25`, `ipfs_stargz_passthrough_opens_total 26`,
		`ipfs_stargz_chunks_fetched_total{purpose="demand"} 27`, `ipfs_stargz_chunk_bytes_fetched_total{purpose="prefetch"} 3.3554432e+07`,
		`ipfs_stargz_cache_objects 42`, `ipfs_stargz_cache_limit_bytes +Inf`, `ipfs_stargz_cache_lingering_bytes 44`,
		`ipfs_stargz_cache_evicted_bytes_total 46`, `ipfs_stargz_cache_damaged_total 47`, `ipfs_stargz_cache_changed_total 48`,
		`ipfs_stargz_cache_scrubbed_objects_total 49`, `ipfs_stargz_cache_refused_total 51`,
		`ipfs_stargz_source_blocks_total{source="node"} 61`, `ipfs_stargz_blocks 72`,
		`ipfs_stargz_layer_total_bytes{layer="bafktwo"} 5.24288e+06`, `ipfs_stargz_image_bytes{layers="bafkone",tree="/t/m"} 3.145728e+06`,
		"go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %q:\n%s", want, text)
		}
	}
	code, text = get(metricsHandler(func() (daemonState, error) { return daemonState{}, errors.New("no state today") }, log))
	if code != http.StatusInternalServerError || !strings.Contains(text, "no state today") {
		t.Errorf("without a state: %d, %s", code, text)
	}
}
