package main

import (
	"log/slog"
	"math"
	"net"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ipfs-stargz/ipfs-stargz/fs"
)

// metricsHandler answers with the daemon's figures in Prometheus' format. They
// are those of [daemonState]: nothing is counted twice.
func metricsHandler(state func() (daemonState, error), log *slog.Logger) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(&collector{state}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)})
}

// collector makes metrics of a state when they are asked for.
type collector struct {
	state func() (daemonState, error)
}

// Describe implements [prometheus.Collector]. It tells nothing: which metrics
// there are depends on the configuration.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(out chan<- prometheus.Metric) {
	s, err := c.state()
	if err != nil {
		out <- prometheus.NewInvalidMetric(prometheus.NewDesc("ipfs_stargz_state", "What the daemon is doing.", nil, nil), err)
		return
	}
	m := metrics{out}
	m.gauge("info", "The running version, and how lazy layers are mounted.", 1, "version", s.Version, "mode", s.Files.Mode)
	m.files(s.Files)
	m.cache(s)
	m.layers(s.Files)
	for _, f := range s.Sources {
		m.counter("source_blocks_total", "Blocks that readers got, by where from.", f.Blocks, "source", f.Source)
		m.counter("source_bytes_total", "Bytes of these blocks.", f.Bytes, "source", f.Source)
	}
	m.gauge("peers", "Connected peers.", float64(len(s.Peers)))
}

// metrics sends metrics; labels are names and values in turn.
type metrics struct{ out chan<- prometheus.Metric }

func desc(name, help string, labels []string) (d *prometheus.Desc, values []string) {
	var names []string
	for i := 0; i < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	return prometheus.NewDesc("ipfs_stargz_"+name, help, names, nil), values
}

func (m metrics) gauge(name, help string, v float64, labels ...string) {
	d, values := desc(name, help, labels)
	m.out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, values...)
}

func (m metrics) counter(name, help string, v int64, labels ...string) {
	d, values := desc(name, help, labels)
	m.out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), values...)
}

func (m metrics) files(s fs.State) {
	for _, r := range s.Requests {
		buckets := map[float64]uint64{}
		for _, b := range r.Buckets {
			buckets[b.Seconds] = uint64(b.Count)
		}
		d, values := desc("fuse_request_seconds", "Requests that met FUSE, with what was fetched for them.", []string{"kind", r.Kind})
		m.out <- prometheus.MustNewConstHistogram(d, uint64(r.Count), r.Seconds, buckets, values...)
	}
	c := s.Chunks
	m.counter("chunk_hits_total", "Chunks that were wanted and in the cache, of files read through FUSE.", c.Hits)
	m.counter("chunk_joins_total", "Chunks that were wanted and on their way already.", c.Joined)
	m.counter("chunk_raises_total", "Chunks that came to be waited for while they were prefetched.", c.Raised)
	m.counter("chunk_failures_total", "Chunks that could not be had.", c.Failures)
	m.counter("chunk_cache_errors_total", "Chunks that could not be kept.", c.CacheErrors)
	m.counter("passthrough_opens_total", "Files opened through FUSE that the kernel reads by itself.", c.Passthrough)
	for _, f := range []struct {
		purpose string
		fs.Fetched
	}{{"demand", c.Demand}, {"read_ahead", c.ReadAhead}, {"prefetch", c.Prefetch}} {
		m.counter("chunks_fetched_total", "Chunks that were fetched, by what for.", f.Chunks, "purpose", f.purpose)
		m.counter("chunk_bytes_fetched_total", "Uncompressed bytes of these chunks.", f.Bytes, "purpose", f.purpose)
	}
}

func (m metrics) cache(s daemonState) {
	u := s.Files.Cache
	m.gauge("cache_bytes", "Bytes on disk of files' contents.", float64(u.Bytes))
	m.gauge("cache_partial_bytes", "Bytes of these of files that are not complete.", float64(u.PartialBytes))
	m.gauge("cache_lingering_bytes", "Bytes of evicted files that somebody has open still.", float64(u.Lingering))
	m.gauge("cache_objects", "Files' contents that are complete.", float64(u.Objects))
	m.gauge("cache_limit_bytes", "What the cache may hold now.", limit(u.Limit))
	m.counter("cache_evicted_objects_total", "Contents evicted.", u.EvictedObjects)
	m.counter("cache_evicted_bytes_total", "Bytes of these.", u.EvictedBytes)
	m.counter("cache_damaged_total", "Contents found damaged, and removed.", u.Damaged)
	m.counter("cache_changed_total", "Contents that somebody else had changed.", u.Changed)
	m.counter("cache_scrubbed_objects_total", "Contents verified again in scrubs.", u.ScrubbedObjects)
	m.counter("cache_scrubbed_bytes_total", "Bytes of these.", u.ScrubbedBytes)
	m.counter("cache_refused_total", "Times that something was not kept for lack of room.", u.Refused)
	m.gauge("blocks_bytes", "Bytes of IPFS blocks.", float64(s.Blocks.Bytes))
	m.gauge("blocks", "IPFS blocks.", float64(s.Blocks.Blocks))
	m.gauge("blocks_limit_bytes", "What the block store may hold now.", limit(s.Blocks.Limit))
}

// limit is a number of bytes, of which the largest stands for none.
func limit(bytes int64) float64 {
	if bytes == math.MaxInt64 {
		return math.Inf(1)
	}
	return float64(bytes)
}

func (m metrics) layers(s fs.State) {
	for _, l := range s.Layers {
		m.gauge("layer_bytes", "Uncompressed bytes of a lazy layer's files that are here.", float64(l.Bytes), "layer", l.CID)
		m.gauge("layer_total_bytes", "Uncompressed bytes of a lazy layer's files.", float64(l.TotalBytes), "layer", l.CID)
	}
	for _, im := range s.Images {
		labels := []string{"tree", im.Tree, "layers", strings.Join(im.Layers, " ")}
		m.gauge("image_bytes", "Uncompressed bytes of an image's lazy layers that are here.", float64(im.Bytes), labels...)
		m.gauge("image_total_bytes", "Uncompressed bytes of an image's lazy layers.", float64(im.TotalBytes), labels...)
	}
}

// onlyMetrics serves metrics at their usual path, and nothing else.
func onlyMetrics(metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	return mux
}

// listenMetrics listens where metrics are served beside the API's socket; nil
// for an empty address.
func listenMetrics(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return l, nil
}
