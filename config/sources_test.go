package config_test

import (
	"strings"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/config"
)

func TestSources(t *testing.T) {
	const all = "[ipfs]\nmode = 'public'\nsources = ['node', 'kubo', 'gateway']\n"
	for name, c := range map[string]struct{ toml, want string }{ // want "" for success
		"all, in public":          {all + "[ipfs.gateway]\nurls = ['https://gw.example']", ""},
		"kubo of this machine":    {"[ipfs]\nsources = ['kubo', 'node']", ""},
		"by a socket":             {"[ipfs]\nsources = ['node', 'kubo']\nkubo.address = '/unix/run/kubo.sock'", ""},
		"by loopback":             {"[ipfs]\nsources = ['node', 'kubo']\nkubo.address = '/ip4/127.0.0.1/tcp/5001'", ""},
		"by loopback's other one": {"[ipfs]\nsources = ['node', 'kubo']\nkubo.address = 'http://n:pw@[::1]:5001'", ""},
		"by name":                 {"[ipfs]\nsources = ['node', 'kubo']\nkubo.address = '/dns/localhost/tcp/5001'", ""},
		"another machine, public": {all + "kubo.address = 'http://n:s3cret@10.0.0.1:5001'\ngateway.urls = ['http://gw.example']", ""},
		"urls, but no source":     {"[ipfs.gateway]\nurls = ['https://gw.example']", ""},

		"no mode":               {"[ipfs]\nmode = 'secret'", "ipfs.mode"},
		"no source":             {"[ipfs]\nsources = []", "ipfs.sources"},
		"no node":               {"[ipfs]\nsources = ['kubo']", `"node" is missing`},
		"unknown source":        {"[ipfs]\nsources = ['node', 'ftp']", `"ftp"`},
		"twice":                 {"[ipfs]\nsources = ['node', 'kubo', 'node']", "twice"},
		"no patience":           {"[ipfs]\npatience = '0s'", "ipfs.patience"},
		"gateway in private":    {"[ipfs]\nsources = ['node', 'gateway']\ngateway.urls = ['http://127.0.0.1:8080']", "mode private does not allow"},
		"gateway without urls":  {all, "no gateway is named"},
		"no URL":                {all + "gateway.urls = ['https://a', 'n:s3cret@gw.example']", "number 2"},
		"another machine":       {"[ipfs]\nsources = ['node', 'kubo']\nkubo.address = 'http://n:s3cret@10.0.0.1:5001'", "ipfs.kubo.address"},
		"another machine's too": {"[ipfs]\nsources = ['node', 'kubo']\nkubo.address = '/dns/kubo.example/tcp/5001'", "ipfs.kubo.address"},
		"nonsense":              {"[ipfs]\nsources = ['node', 'kubo']\nkubo.address = 's3cret'", "ipfs.kubo.address"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config.Default()
			err := config.Parse([]byte(c.toml), &cfg)
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cret")) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}
