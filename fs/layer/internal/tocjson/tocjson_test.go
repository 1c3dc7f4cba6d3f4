package tocjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
)

// decoded is a TOC as encoding/json decodes it into fields of these types.
type decoded struct {
	Version int64   `json:"version"`
	Entries []entry `json:"entries"`
}

type entry struct {
	Name          string            `json:"name"`
	Type          string            `json:"type"`
	LinkName      string            `json:"linkName"`
	ModTime       string            `json:"modtime"`
	NameBytes     []byte            `json:"nameBytes"`
	LinkNameBytes []byte            `json:"linkNameBytes"`
	Digest        string            `json:"digest"`
	ChunkDigest   string            `json:"chunkDigest"`
	Xattrs        map[string][]byte `json:"xattrs"`
	Size          int64             `json:"size"`
	Mode          int64             `json:"mode"`
	UID           int64             `json:"uid"`
	GID           int64             `json:"gid"`
	DevMajor      int64             `json:"devMajor"`
	DevMinor      int64             `json:"devMinor"`
	Offset        int64             `json:"offset"`
	InnerOffset   int64             `json:"innerOffset"`
	ChunkOffset   int64             `json:"chunkOffset"`
	ChunkSize     int64             `json:"chunkSize"`
}

// read reads a whole TOC with a Decoder.
func read(r io.Reader) (decoded, error) {
	d := NewDecoder(r)
	var out decoded
	var e Entry
	for {
		err := d.Next(&e)
		if err == io.EOF {
			out.Version = d.Version()
			return out, nil
		}
		if err != nil {
			return out, err
		}
		x := entry{
			Name: string(e.Name), Type: string(e.Type), LinkName: string(e.LinkName), ModTime: string(e.ModTime),
			NameBytes: bytes.Clone(e.RawName), LinkNameBytes: bytes.Clone(e.RawLinkName),
			Digest: string(e.Digest), ChunkDigest: string(e.ChunkDigest),
			Size: e.Size, Mode: e.Mode, UID: e.UID, GID: e.GID, DevMajor: e.DevMajor, DevMinor: e.DevMinor,
			Offset: e.Offset, InnerOffset: e.InnerOffset, ChunkOffset: e.ChunkOffset, ChunkSize: e.ChunkSize,
			Xattrs: map[string][]byte{},
		}
		for _, a := range e.Xattrs {
			x.Xattrs[string(a.Name)] = bytes.Clone(a.Value)
		}
		out.Entries = append(out.Entries, x)
	}
}

// flatten makes what differs in form only the same.
func flatten(d decoded) decoded {
	if len(d.Entries) == 0 {
		d.Entries = nil
	}
	for i := range d.Entries {
		e := &d.Entries[i]
		if len(e.NameBytes) == 0 {
			e.NameBytes = nil
		}
		if len(e.LinkNameBytes) == 0 {
			e.LinkNameBytes = nil
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string][]byte{}
		}
		for k, v := range e.Xattrs {
			if len(v) == 0 {
				e.Xattrs[k] = nil
			}
		}
	}
	return d
}

var seeds = []string{
	`{"version":1,"entries":[]}`,
	`{"entries":null}`,
	` { "entries" : [ { "name" : "a" , "type" : "dir" } , {} ] , "version" : 1 } ` + "\n",
	`{"entries":[{"name":"\u0041\ud83d\ude00\ud800\udc00x\ud800\n\/\"\\\b\f\n\r\t","linkName":"é日😀` + "\xff\xc3" + `"}]}`,
	`{"entries":[{"xattrs":{"user.a":"AP8=","user.b":null,"user.c":""},"size":-9223372036854775808,"mode":9223372036854775807,"uid":-0}]}`,
	`{"entries":[{"nameBytes":"Yf8=","linkNameBytes":"AA==","modtime":"x","digest":"d","chunkDigest":"c","gid":1,"devMajor":2,"devMinor":3,"offset":4,"innerOffset":5,"chunkOffset":6,"chunkSize":7}]}`,
	`{"x":[1,-2.5e+7,0.0,1E9,true,false,null,"\u12aB",{"y":{"z":[[],{}]}}],"entries":[{"userName":"root","name":null,"xattrs":null,"size":null}]}`,
}

func TestAgainstEncodingJSON(t *testing.T) {
	for _, text := range seeds {
		var want decoded
		if err := json.Unmarshal([]byte(text), &want); err != nil {
			t.Fatalf("%s: the test's JSON is malformed: %v", text, err)
		}
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(text), "bytewise": iotest.OneByteReader(strings.NewReader(text))} {
			got, err := read(r)
			if err != nil || !reflect.DeepEqual(flatten(got), flatten(want)) {
				t.Errorf("%s: %s\n got %+v, %v\nwant %+v", name, text, got, err, want)
			}
		}
	}
}

func TestSyntaxErrors(t *testing.T) {
	for _, text := range []string{
		``, ` `, `x`, `[]`, `null`, `{`, `{}x`, `{} {}`, `{"version"}`, `{"version":}`, `{"version":1,}`, `{,}`, `{"version":1 "entries":[]}`,
		`{"entries":{}}`, `{"entries":[1]}`, `{"entries":[{}`, `{"entries":[{},]}`, `{"entries":[{}{}]}`, `{"entries":[],"entries":[]}`,
		`{"entries":[{"name":1}]}`, `{"entries":[{"name":"a}]}`, `{"entries":[{"name":"a","name":"b"}]}`, `{"entries":[{"name":"` + "\x01" + `"}]}`,
		`{"entries":[{"name":"\x"}]}`, `{"entries":[{"name":"\u12"}]}`, `{"entries":[{"name":"\u12xx"}]}`, `{"entries":[{"name":"\ud800\u"}]}`,
		`{"version":01}`, `{"version":-}`, `{"version":1.0}`, `{"version":1e3}`, `{"version":"1"}`, `{"version":9223372036854775808}`,
		`{"version":-9223372036854775809}`, `{"version":99999999999999999999999999}`, `{"version":nul}`,
		`{"x":tru}`, `{"x":01}`, `{"x":1.}`, `{"x":.5}`, `{"x":1e}`, `{"x":-}`, `{"x":"\x"}`, `{"x":"` + "\n" + `"}`, `{"x":[1,]}`, `{"x":{"a"}}`, `{"x":{1:2}}`,
		`{"entries":[{"xattrs":[]}]}`, `{"entries":[{"xattrs":{"a":1}}]}`, `{"entries":[{"xattrs":{"a":"*"}}]}`, `{"entries":[{"nameBytes":"A"}]}`,
		`{"x":` + strings.Repeat("[", maxDepth+2) + strings.Repeat("]", maxDepth+2) + `}`,
	} {
		if _, err := read(strings.NewReader(text)); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

func TestTooLong(t *testing.T) {
	for name, text := range map[string]string{
		"string": `{"entries":[{"name":"` + strings.Repeat("x", MaxString+1) + `"}]}`,
		"xattrs": `{"entries":[{"xattrs":{` + strings.Repeat(`"":"",`, MaxXattrBytes+1) + `"":""}}]}`,
		"key":    `{"` + strings.Repeat("x", MaxString+1) + `":1}`,
	} {
		if _, err := read(strings.NewReader(text)); !errors.Is(err, ErrTooLong) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// What is skipped may be of any length.
	if _, err := read(strings.NewReader(`{"x":"` + strings.Repeat("x", 2*MaxString) + `"}`)); err != nil {
		t.Error(err)
	}
}

func TestReaderError(t *testing.T) {
	broken := errors.New("broken")
	for n := range len(seeds[2]) {
		r := io.MultiReader(strings.NewReader(seeds[2][:n]), iotest.ErrReader(broken))
		if _, err := read(r); !errors.Is(err, broken) {
			t.Errorf("after %d bytes: got %v", n, err)
		}
	}
}

func TestNextDoesNotAllocate(t *testing.T) {
	one := `{"name":"usr/bin/a","type":"reg","size":5,"modtime":"2024-02-29T12:30:15Z","xattrs":{"user.a":"AP8="},"digest":"sha256:` + strings.Repeat("0", 64) + `"},`
	d := NewDecoder(strings.NewReader(`{"entries":[` + strings.Repeat(one, 2000) + `{}]}`))
	var e Entry
	if n := testing.AllocsPerRun(1000, func() {
		if err := d.Next(&e); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations an entry", n)
	}
}

// FuzzAgainstEncodingJSON: what the decoder takes, encoding/json takes for the
// same, where no name of a field differs in case only from one that is known.
func FuzzAgainstEncodingJSON(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := read(strings.NewReader(text))
		if again, err2 := read(iotest.OneByteReader(strings.NewReader(text))); (err == nil) != (err2 == nil) || !reflect.DeepEqual(got, again) {
			t.Fatalf("read byte by byte: %+v, %v; whole %+v, %v", again, err2, got, err)
		}
		if err != nil {
			if !errors.Is(err, ErrSyntax) && !errors.Is(err, ErrTooLong) {
				t.Fatal(err)
			}
			return
		}
		if otherCase(text) {
			return
		}
		var want decoded
		if err := json.Unmarshal([]byte(text), &want); err != nil {
			t.Fatalf("encoding/json: %v", err)
		}
		if !reflect.DeepEqual(flatten(got), flatten(want)) {
			t.Fatalf("got %+v\nwant %+v", got, want)
		}
	})
}

// otherCase reports whether text has a member name that only encoding/json
// takes for a known one, or that is given twice.
func otherCase(text string) bool {
	known := map[string]string{"version": "version", "entries": "entries"}
	for i, typ := 0, reflect.TypeFor[entry](); i < typ.NumField(); i++ {
		name := typ.Field(i).Tag.Get("json")
		known[strings.ToLower(name)] = name
	}
	d := json.NewDecoder(strings.NewReader(text))
	seen := map[string]int{}
	for {
		tok, err := d.Token()
		if err != nil {
			return false
		}
		s, ok := tok.(string)
		if !ok {
			continue
		}
		// Member names and values are not told apart: that is more careful only.
		for low, name := range known {
			if strings.EqualFold(s, low) && s != name {
				return true
			}
		}
		if s == "version" || s == "entries" {
			if seen[s]++; seen[s] > 1 {
				return true
			}
		}
	}
}

func TestVersion(t *testing.T) {
	for _, v := range []int64{0, 1, 7, -1} {
		got, err := read(strings.NewReader(`{"entries":[{}],"version":` + strconv.FormatInt(v, 10) + `}`))
		if err != nil || got.Version != v {
			t.Errorf("%d: got %d, %v", v, got.Version, err)
		}
	}
}
