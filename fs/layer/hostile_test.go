package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
)

// payload is how long the files of a blob by blobWith claim to be.
const payload = 10_000

// blobWith is a gzip layer with this TOC behind payload bytes of no meaning.
func blobWith(t testing.TB, toc string) []byte {
	t.Helper()
	var b bytes.Buffer
	b.Write(make([]byte, payload))
	writeTOC(t, &b, estargz.TOCTarName, strings.NewReader(toc), int64(len(toc)))
	b.Write(gzipFooter(payload))
	return b.Bytes()
}

func writeTOC(t testing.TB, w io.Writer, name string, toc io.Reader, size int64) {
	t.Helper()
	zw, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(zw)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(tw, toc); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
}

func gzipFooter(offset int64) []byte {
	return estargz.CreateGzipFooter(fmt.Appendf([]byte("SG\x16\x00"), "%016xSTARGZ", offset))
}

// zstdFooter is a footer of n bytes, 40, 56 or 64.
func zstdFooter(n int, magic string, words ...uint64) []byte {
	b := []byte{0x50, 0x2a, 0x4d, 0x18, byte(n), 0, 0, 0}
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	b = append(b, make([]byte, n+8-8-len(b))...)
	return append(b, magic...)
}

// d is a chunk digest for TOCs whose contents nobody reads.
var d = digest.FromString("x").String()

func entries(e ...string) string { return `{"version":1,"entries":[` + strings.Join(e, ",") + `]}` }

func TestHostileTOC(t *testing.T) {
	file := func(fields string) string { return entries(`{"name":"a","type":"reg",` + fields + `}`) }
	for name, c := range map[string]struct {
		toc  string
		want error // nil: it must be read
	}{
		"empty":                      {`{"version":1}`, nil},
		"null entries":               {`{"entries":null}`, nil},
		"unknown fields":             {`{"x":{"y":[1,-2.5e+7,"\ud800\"",true,null]},"entries":[{"name":"a","type":"dir","z":{}}]}`, nil},
		"no JSON":                    {`hello`, ErrInvalid},
		"nothing":                    {``, ErrInvalid},
		"cut JSON":                   {`{"version":1,"entries":[{"name":"a"`, ErrInvalid},
		"more after it":              {`{"version":1} x`, ErrInvalid},
		"two entries lists":          {`{"entries":[],"entries":[]}`, ErrInvalid},
		"a field twice":              {entries(`{"name":"a","name":"b","type":"dir"}`), ErrInvalid},
		"number too large":           {file(`"size":9223372036854775808`), ErrInvalid},
		"fraction":                   {file(`"size":1.5`), ErrInvalid},
		"nested deep":                {`{"x":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`, ErrInvalid},
		"version 2":                  {`{"version":2,"entries":[]}`, ErrNotLazy},
		"unknown type":               {entries(`{"name":"a","type":"door"}`), ErrInvalid},
		"member size":                {file(`"size":3,"offset":1,"memberSize":5,"chunkDigest":"` + d + `"`), nil},
		"member of the whole blob":   {file(fmt.Sprintf(`"size":3,"offset":1,"memberSize":%d,"chunkDigest":"%s"`, payload-1, d)), nil},
		"negative member":            {file(`"size":3,"offset":1,"memberSize":-1,"chunkDigest":"` + d + `"`), ErrInvalid},
		"member past the files":      {file(fmt.Sprintf(`"size":3,"offset":1,"memberSize":%d,"chunkDigest":"%s"`, payload, d)), ErrInvalid},
		"member that overflows":      {file(`"size":3,"offset":1,"memberSize":9223372036854775807,"chunkDigest":"` + d + `"`), ErrInvalid},
		"no type":                    {entries(`{"name":"a"}`), ErrInvalid},
		"name upwards":               {entries(`{"name":"a/../../b","type":"dir"}`), ErrInvalid},
		"name with NUL":              {entries(`{"name":"a\u0000","type":"dir"}`), ErrInvalid},
		"long name":                  {entries(`{"name":"` + strings.Repeat("n", 256) + `","type":"dir"}`), ErrLimit},
		"name of the limit":          {entries(`{"name":"` + strings.Repeat("n", 255) + `","type":"dir"}`), nil},
		"deep name":                  {entries(`{"name":"` + strings.Repeat("n/", 4097) + `","type":"dir"}`), ErrLimit},
		"name as deep as the limit":  {entries(`{"name":"` + strings.Repeat("n/", 4096) + `","type":"dir"}`), nil},
		"huge string":                {entries(`{"name":"` + strings.Repeat("n/", 1<<19) + `n","type":"dir"}`), ErrLimit},
		"absolute name":              {entries(`{"name":"//a/./b/","type":"dir"}`), nil},
		"lost name":                  {entries(`{"name":"a\ufffd","type":"dir"}`), ErrNotLazy},
		"lost link":                  {entries(`{"name":"a","type":"symlink","linkName":"\ufffd"}`), ErrNotLazy},
		"raw name":                   {entries(`{"name":"a\ufffd","nameBytes":"Yf8=","type":"dir"}`), nil},
		"raw name of another":        {entries(`{"name":"ab","nameBytes":"Yf8=","type":"dir"}`), ErrInvalid},
		"raw name upwards":           {entries(`{"name":"..","nameBytes":"Li4=","type":"dir"}`), ErrInvalid},
		"malformed raw name":         {entries(`{"name":"ab","nameBytes":"?","type":"dir"}`), ErrInvalid},
		"root is a file":             {entries(`{"name":"./","type":"fifo"}`), ErrInvalid},
		"negative size":              {file(`"size":-1`), ErrInvalid},
		"negative mode":              {file(`"mode":-1`), ErrInvalid},
		"negative owner":             {file(`"uid":-1`), ErrInvalid},
		"owner -1":                   {file(`"gid":4294967295`), ErrInvalid},
		"owner too large":            {file(`"uid":4294967296`), ErrInvalid},
		"largest owner":              {file(`"uid":4294967294,"gid":4294967294`), nil},
		"device number":              {entries(`{"name":"a","type":"char","devMajor":4096}`), ErrInvalid},
		"negative device number":     {entries(`{"name":"a","type":"block","devMinor":-1}`), ErrInvalid},
		"largest device number":      {entries(`{"name":"a","type":"char","devMajor":4095,"devMinor":1048575}`), nil},
		"malformed time":             {file(`"modtime":"yesterday"`), ErrInvalid},
		"time with a zone":           {file(`"modtime":"2024-02-29T12:30:15.5+02:00"`), nil},
		"symlink to nothing":         {entries(`{"name":"a","type":"symlink"}`), ErrInvalid},
		"symlink with NUL":           {entries(`{"name":"a","type":"symlink","linkName":"b\u0000"}`), ErrInvalid},
		"long symlink":               {entries(`{"name":"a","type":"symlink","linkName":"` + strings.Repeat("l", 4096) + `"}`), ErrLimit},
		"hard link to nothing":       {entries(`{"name":"a","type":"hardlink"}`), ErrInvalid},
		"hard link to itself":        {entries(`{"name":"a","type":"hardlink","linkName":"./a"}`), ErrInvalid},
		"hard link upwards":          {entries(`{"name":"a","type":"hardlink","linkName":"../b"}`), ErrInvalid},
		"xattr twice":                {file(`"xattrs":{"user.a":"","user.a":""}`), ErrInvalid},
		"large xattr":                {file(`"xattrs":{"user.a":"` + base64.StdEncoding.EncodeToString(make([]byte, 65_530)) + `"}`), ErrLimit},
		"xattr of the limit":         {file(`"xattrs":{"user.a":"` + base64.StdEncoding.EncodeToString(make([]byte, 65_529)) + `"}`), nil},
		"many xattrs":                {file(`"xattrs":{` + strings.Repeat(`"":"",`, 65_537) + `"":""}`), ErrLimit},
		"long xattr name":            {file(`"xattrs":{"user.` + strings.Repeat("n", 251) + `":""}`), ErrLimit},
		"lost xattr name":            {file(`"xattrs":{"user.\ufffd":""}`), ErrNotLazy},
		"xattr name with NUL":        {file(`"xattrs":{"user.\u0000":""}`), ErrInvalid},
		"no chunk digest":            {file(`"size":5,"offset":10`), ErrNotLazy},
		"file digest of one chunk":   {file(`"size":5,"offset":10,"digest":"` + d + `"`), nil},
		"file digest of two chunks":  {file(`"size":5,"offset":10,"chunkSize":3,"digest":"` + d + `"`), ErrNotLazy},
		"other digest":               {file(`"size":5,"offset":10,"chunkDigest":"` + digest.SHA512.FromString("x").String() + `"`), ErrNotLazy},
		"malformed digest":           {file(`"size":5,"offset":10,"chunkDigest":"sha256:12"`), ErrInvalid},
		"upper-case digest":          {file(`"size":5,"offset":10,"chunkDigest":"` + "sha256:" + strings.ToUpper(digest.Digest(d).Encoded()) + `"`), ErrInvalid},
		"no digest at all":           {file(`"size":5,"offset":10,"chunkDigest":"5"`), ErrInvalid},
		"too few chunks":             {file(`"size":5,"offset":10,"chunkSize":3,"chunkDigest":"` + d + `"`), ErrInvalid},
		"offset behind the payload":  {file(`"size":5,"offset":10000,"chunkDigest":"` + d + `"`), ErrInvalid},
		"last offset":                {file(`"size":5,"offset":9999,"chunkDigest":"` + d + `"`), nil},
		"negative offset":            {file(`"size":5,"offset":-1,"chunkDigest":"` + d + `"`), ErrInvalid},
		"negative inner offset":      {file(`"size":5,"offset":1,"innerOffset":-1,"chunkDigest":"` + d + `"`), ErrInvalid},
		"large inner offset":         {file(`"size":5,"offset":1,"innerOffset":67108865,"chunkDigest":"` + d + `"`), ErrNotLazy},
		"large chunk":                {file(`"size":67108865,"offset":1,"chunkDigest":"` + d + `"`), ErrNotLazy},
		"largest chunk":              {file(`"size":67108864,"offset":1,"chunkDigest":"` + d + `"`), nil},
		"chunk larger than its file": {file(`"size":5,"chunkSize":6,"offset":1,"chunkDigest":"` + d + `"`), ErrInvalid},
		"first chunk not at 0":       {file(`"size":5,"chunkOffset":1,"offset":1,"chunkDigest":"` + d + `"`), ErrInvalid},
		"chunk of negative size":     {file(`"size":5,"chunkSize":-5,"offset":1,"chunkDigest":"` + d + `"`), ErrInvalid},
		"chunk of no file":           {entries(`{"name":"a","type":"chunk","chunkSize":1,"chunkDigest":"` + d + `"}`), ErrInvalid},
		"chunk of a directory":       {entries(`{"name":"a","type":"dir"}`, `{"name":"a","type":"chunk","chunkSize":1,"chunkDigest":"`+d+`"}`), ErrInvalid},
		"chunks with a gap":          {twoChunks(3, 4, 0), ErrInvalid},
		"chunks that overlap":        {twoChunks(3, 2, 0), ErrInvalid},
		"chunks over the end":        {twoChunks(3, 3, 8), ErrInvalid},
		"chunk offset overflow":      {twoChunks(3, 9223372036854775807, 9223372036854775807), ErrInvalid},
		"chunks to the end":          {twoChunks(3, 3, 0), nil},
		"one digest, two sizes": {entries(
			`{"name":"a","type":"reg","size":5,"offset":1,"chunkDigest":"`+d+`"}`,
			`{"name":"b","type":"reg","size":6,"offset":9,"chunkDigest":"`+d+`"}`), ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadTOC(context.Background(), &memory{b: blobWith(t, c.toc)}, "")
			if c.want == nil && err != nil || !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			// One error is one kind.
			kinds := 0
			for _, kind := range []error{ErrInvalid, ErrLimit, ErrNotLazy, ErrNotStargz, ErrTOCDigest} {
				if errors.Is(err, kind) {
					kinds++
				}
			}
			if err != nil && kinds != 1 {
				t.Errorf("%v is %d kinds", err, kinds)
			}
			// Whatever is wrong with it, that it is not the wanted one comes first.
			if err != nil && c.want != ErrLimit {
				if _, err := ReadTOC(context.Background(), &memory{b: blobWith(t, c.toc)}, digest.FromString("wanted")); !errors.Is(err, ErrTOCDigest) {
					t.Errorf("with a digest: got %v", err)
				}
			}
		})
	}
}

// twoChunks is a file of 10 bytes whose second chunk is not as it should be.
func twoChunks(firstSize, secondOffset, secondSize int64) string {
	return entries(
		fmt.Sprintf(`{"name":"a","type":"reg","size":10,"offset":1,"chunkSize":%d,"chunkDigest":"%s"}`, firstSize, d),
		fmt.Sprintf(`{"name":"a","type":"chunk","offset":20,"chunkOffset":%d,"chunkSize":%d,"chunkDigest":"%s"}`, secondOffset, secondSize, d))
}

// TestBounds has a stream that ends before the next begins, one that says that
// it goes on into it, and one whose contents are in the layer already.
func TestBounds(t *testing.T) {
	one := func(name string, offset, size int64) string {
		return fmt.Sprintf(`{"name":%q,"type":"reg","size":3,"offset":%d,"memberSize":%d,"chunkDigest":"%s"}`, name, offset, size,
			digest.FromString(name[:1]))
	}
	toc, err := ReadTOC(context.Background(), &memory{b: blobWith(t, entries(one("a", 10, 5), one("b", 20, 15), one("c", 30, 0), one("a again", 40, 6)))}, "")
	if err != nil {
		t.Fatal(err)
	}
	var reach []int64
	for _, o := range toc.Objects {
		reach = append(reach, o.Chunks[0].BlobSize)
	}
	if want := []int64{5, 10, 10}; !slices.Equal(reach, want) {
		t.Errorf("streams of %d bytes, want %d", reach, want)
	}
	if want := []int64{10, 15, 20, 30, 35, 40, 46, payload}; !slices.Equal(toc.Bounds(), want) {
		t.Errorf("bounds %d, want %d", toc.Bounds(), want)
	}
}

func TestCleanedEntries(t *testing.T) {
	toc, err := ReadTOC(context.Background(), &memory{b: blobWith(t, entries(
		`{"name":"/a//./b/","type":"dir","mode":17407,"size":4096,"modtime":"2024-02-29T12:30:15.000000001+02:00"}`,
		`{"name":"\ufffd\ufffdx","nameBytes":"//94","type":"symlink","linkName":"..//\ufffd","linkNameBytes":"Li4vL+8="}`,
		`{"name":"old","type":"fifo","modtime":"1969-12-31T23:59:59Z"}`,
		`{"name":".no.prefetch.landmark","type":"reg","size":1,"offset":5,"chunkDigest":"`+d+`"}`,
		`{"name":"h","type":"hardlink","linkName":"/x/./y"}`))}, "")
	if err != nil {
		t.Fatal(err)
	}
	epoch := time.Unix(0, 0).UTC()
	want := []Entry{
		{Name: "a/b", Type: Dir, Mode: 0o1777, ModTime: time.Date(2024, 2, 29, 10, 30, 15, 1, time.UTC)},
		{Name: "\xff\xffx", Type: Symlink, LinkName: "..//\xef", ModTime: epoch},
		{Name: "old", Type: Fifo, ModTime: epoch},
		{Name: "h", Type: Hardlink, LinkName: "x/y", ModTime: epoch},
	}
	if !reflect.DeepEqual(toc.Entries, want) {
		t.Errorf("got %+v", toc.Entries)
	}
	if len(toc.Objects) != 0 {
		t.Errorf("the landmark is an object: %+v", toc.Objects)
	}
}

func TestXattrsOfSample(t *testing.T) {
	toc, err := ReadTOC(context.Background(), &memory{b: gzipLayer(t, sample())}, "")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(toc.Entries, func(e Entry) bool { return e.Name == "usr/bin/su" })
	want := []Xattr{{"security.capability", []byte("\x01\x00\x00\x02")}, {"user.a", []byte("1")}, {"user.b", []byte("\x00\xff")}}
	if e := toc.Entries[i]; !reflect.DeepEqual(e.Xattrs, want) || e.Mode != 0o4755 || e.UID != 1<<31 || e.GID != 1<<32-2 {
		t.Errorf("got %+v", e)
	}
}

func TestFooters(t *testing.T) {
	var compressed bytes.Buffer
	zw, err := zstd.NewWriter(&compressed)
	if err != nil {
		t.Fatal(err)
	}
	text := entries(`{"name":"a","type":"reg","size":5,"offset":9,"chunkDigest":"` + d + `"}`)
	if _, err := io.WriteString(zw, text); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	offset, n, plain := uint64(payload), uint64(compressed.Len()), uint64(len(text))
	zstdBlob := func(footer []byte) []byte {
		b := append(make([]byte, payload-8), 0x50, 0x2a, 0x4d, 0x18, byte(n), 0, 0, 0)
		return append(append(b, compressed.Bytes()...), footer...)
	}
	legacy := blobWith(t, text)
	legacy = append(legacy[:len(legacy)-estargz.FooterSize], estargz.CreateGzipFooter(fmt.Appendf(nil, "%016xSTARGZ", payload))...)
	gzipEnd := func(footer []byte) []byte {
		b := blobWith(t, text)
		return append(b[:len(b)-estargz.FooterSize], footer...)
	}
	huge := func(offset uint64) []byte { return zstdFooter(40, "GnUlInUx", offset, n, plain, 1) }
	for name, c := range map[string]struct {
		blob []byte
		want error
	}{
		"gzip":                    {blobWith(t, text), nil},
		"legacy stargz":           {legacy, nil},
		"zstd, 40 bytes":          {zstdBlob(zstdFooter(40, "GnUlInUx", offset, n, plain, 1)), nil},
		"zstd, 56 bytes":          {zstdBlob(zstdFooter(56, "GnUlInUx", offset, n, plain, 1)), nil},
		"zstd, 64 bytes":          {zstdBlob(zstdFooter(64, "GNUlInUx", offset, n, plain, 1, 7, 7, 7)), nil},
		"zstd, unknown type":      {zstdBlob(zstdFooter(64, "GNUlInUx", offset, n, plain, 2)), ErrNotLazy},
		"zstd, unknown size":      {zstdBlob(zstdFooter(48, "GNUlInUx", offset, n, plain, 1)), ErrNotStargz},
		"zstd, no frame":          {zstdBlob(zstdFooter(40, "GnUlInUx", offset, n, plain, 1)[8:]), ErrNotStargz},
		"zstd, offset":            {zstdBlob(huge(1 << 63)), ErrInvalid},
		"zstd, offset overflow":   {zstdBlob(huge(1<<64 - 1)), ErrInvalid},
		"zstd, offset 0":          {zstdBlob(huge(0)), ErrInvalid},
		"zstd, no TOC there":      {zstdBlob(huge(100)), ErrInvalid},
		"zstd, empty TOC":         {zstdBlob(zstdFooter(40, "GnUlInUx", offset, 0, plain, 1)), ErrInvalid},
		"zstd, long TOC":          {zstdBlob(zstdFooter(40, "GnUlInUx", offset, 1<<40, plain, 1)), ErrInvalid},
		"zstd, large JSON":        {zstdBlob(zstdFooter(40, "GnUlInUx", offset, n, MaxTOCJSONBytes+1, 1)), ErrLimit},
		"zstd, larger JSON":       {zstdBlob(zstdFooter(40, "GnUlInUx", offset, n, 1<<63, 1)), ErrInvalid},
		"external TOC":            {gzipEnd(estargz.CreateGzipFooter([]byte("SG\x11\x00STARGZEXTERNALTOC"))), ErrNotLazy},
		"gzip, offset behind":     {gzipEnd(gzipFooter(1 << 40)), ErrInvalid},
		"gzip, negative offset":   {gzipEnd(estargz.CreateGzipFooter([]byte("SG\x16\x00-00000000000000fSTARGZ"))), ErrInvalid},
		"gzip, no number":         {gzipEnd(estargz.CreateGzipFooter([]byte("SG\x16\x00xxxxxxxxxxxxxxxxSTARGZ"))), ErrInvalid},
		"gzip, other magic":       {gzipEnd(estargz.CreateGzipFooter([]byte("SG\x16\x000000000000000000STARGX"))), ErrNotStargz},
		"gzip, no TOC there":      {gzipEnd(gzipFooter(100)), ErrInvalid},
		"empty":                   {nil, ErrNotStargz},
		"one byte":                {[]byte{1}, ErrNotStargz},
		"a usual layer":           {gzipped(t, makeTar(t, sample())), ErrNotStargz},
		"a plain tar":             {makeTar(t, sample()), ErrNotStargz},
		"a footer alone":          {gzipFooter(0), ErrInvalid},
		"a tar with another name": {otherName(t), ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			toc, err := ReadTOC(context.Background(), &memory{b: c.blob}, "")
			if c.want == nil && err != nil || !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err == nil && toc.Digest != digest.FromString(text) {
				t.Errorf("digest %s", toc.Digest)
			}
		})
	}
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	if _, err := zw.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func otherName(t testing.TB) []byte {
	var b bytes.Buffer
	b.Write(make([]byte, payload))
	writeTOC(t, &b, "other", strings.NewReader("{}"), 2)
	b.Write(gzipFooter(payload))
	return b.Bytes()
}
