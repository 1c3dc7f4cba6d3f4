package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// basePackages is what every Debian has: apt's pattern for all that is marked
// essential (libc, bash, coreutils, perl-base, dpkg, …).
const basePackages = "?essential"

// binaryPath is the PATH of the Debian images.
const binaryPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Debian is a base image in one layer: the essential packages, about 90.
func Debian() Recipe {
	return Recipe{
		Name:   "debian",
		Config: ocispec.ImageConfig{Env: []string{binaryPath}, Cmd: []string{"bash"}},
		Layers: debianLayers(debianLayer{packages: []string{basePackages}}),
	}
}

// Python is an image as people build them: a base, an interpreter, NumPy with
// OpenBLAS, and a small application, one layer each. Its lowest layer is
// [Debian]'s.
func Python() Recipe {
	return Recipe{
		Name:   "python",
		Config: ocispec.ImageConfig{Env: []string{binaryPath}, Cmd: []string{"python3", "/app/main.py"}, WorkingDir: "/app"},
		Layers: debianLayers(
			debianLayer{packages: []string{basePackages}},
			debianLayer{packages: []string{"python3"}},
			debianLayer{packages: []string{"python3-numpy", "libopenblas0-pthread"}},
			debianLayer{files: []file{
				{name: "app", dir: true},
				{name: "app/main.py", text: pythonApp},
			}},
		),
	}
}

// pythonApp is the application of the Python image: it needs NumPy and the
// linear algebra below it.
const pythonApp = `import numpy

a = numpy.arange(9.0).reshape(3, 3) + numpy.eye(3)
print("numpy", numpy.__version__, "determinant", round(numpy.linalg.det(a), 6), flush=True)
`

// debianLayer is what is added by one layer: packages, with all they depend on
// and lower layers do not have, then files.
type debianLayer struct {
	packages []string
	files    []file
}

// file is a folder, or a symbolic link if link is set, or text.
type file struct {
	name string // relative to the root
	dir  bool
	link string
	text string
}

func debianLayers(stack ...debianLayer) func(context.Context, string, string) ([]Layer, error) {
	return func(ctx context.Context, cache, _ string) ([]Layer, error) {
		unlock, err := lock(filepath.Join(cache, "apt.lock"))
		if err != nil {
			return nil, err
		}
		defer unlock()
		a, err := newApt(ctx, filepath.Join(cache, "apt"))
		if err != nil {
			return nil, err
		}
		var (
			layers   []Layer
			packages []string // of this and the lower layers
			have     []string // .deb files of the lower layers
		)
		for i, l := range stack {
			var debs []string
			if len(l.packages) > 0 {
				packages = append(packages, l.packages...)
				all, err := a.download(ctx, packages...)
				if err != nil {
					return nil, err
				}
				for _, deb := range all {
					if !slices.Contains(have, deb) {
						debs = append(debs, deb)
					}
				}
				have = all
			}
			layers = append(layers, writeDebian(i == 0, debs, have, l.files))
		}
		return layers, nil
	}
}

// writeDebian gives a layer of unpacked packages. No script of a package runs;
// of what their scripts would do only what programs here need is done: users,
// dpkg's status, some alternatives.
func writeDebian(base bool, debs, installed []string, files []file) Layer {
	return func(ctx context.Context, w *tar.Writer) error {
		d := &debWriter{w: w, dirs: map[string]bool{}}
		if base {
			// Debian's /usr merge: the base image has the links, and what
			// packages ship in /bin is unpacked into /usr/bin.
			for _, dir := range mergedDirs {
				if err := d.file(file{name: dir, link: "usr/" + dir}); err != nil {
					return err
				}
			}
		}
		for _, deb := range debs {
			if err := d.unpack(ctx, deb); err != nil {
				return fmt.Errorf("%s: %w", filepath.Base(deb), err)
			}
		}
		files := slices.Clone(files)
		if base {
			files = append(files,
				file{name: "etc/passwd", text: "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"},
				file{name: "etc/group", text: "root:x:0:\nstaff:x:50:\nnogroup:x:65534:\n"})
		}
		if len(debs) > 0 {
			status, err := dpkgStatus(ctx, installed)
			if err != nil {
				return err
			}
			files = append(files, file{name: "var/lib/dpkg/status", text: status})
			files = append(files, alternatives(debs)...)
		}
		for _, f := range files {
			if err := d.file(f); err != nil {
				return err
			}
		}
		return nil
	}
}

// mergedDirs are the folders that are links into /usr.
var mergedDirs = []string{"bin", "lib", "lib32", "lib64", "libx32", "sbin"}

// debWriter writes the files of several packages as one layer.
type debWriter struct {
	w    *tar.Writer
	dirs map[string]bool // folders that the layer has already
}

// unpack writes the files of one package, with owners, modes and times as
// they are in it.
func (d *debWriter) unpack(ctx context.Context, deb string) (err error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	stderr := &strings.Builder{}
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_, _ = io.Copy(io.Discard, out)
		if werr := cmd.Wait(); werr != nil {
			err = errors.Join(err, werr, errors.New(stderr.String()))
		}
	}()
	r := tar.NewReader(out)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		h.Name = merged(h.Name)
		if h.Typeflag == tar.TypeLink {
			h.Linkname = merged(h.Linkname)
		}
		if h.Typeflag == tar.TypeDir {
			if d.dirs[h.Name] {
				continue
			}
			d.dirs[h.Name] = true
		}
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		h.Format, h.PAXRecords = tar.FormatUnknown, nil
		if err := d.w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(d.w, r); err != nil {
			return err
		}
	}
}

// merged is where a package's path is on a Debian with a merged /usr.
func merged(name string) string {
	name = path.Clean("/" + name)[1:]
	first, _, _ := strings.Cut(name, "/")
	if slices.Contains(mergedDirs, first) {
		name = "usr/" + name
	}
	if name == "" {
		name = "."
	}
	return name
}

// file writes f, and the folders above it that the layer does not have.
func (d *debWriter) file(f file) error {
	if dir := path.Dir(f.name); dir != "." && !d.dirs[dir] {
		if err := d.file(file{name: dir, dir: true}); err != nil {
			return err
		}
	}
	h := &tar.Header{Name: f.name, ModTime: epoch, Mode: 0o644, Size: int64(len(f.text)), Typeflag: tar.TypeReg}
	switch {
	case f.dir:
		d.dirs[f.name] = true
		h.Name, h.Typeflag, h.Mode = f.name+"/", tar.TypeDir, 0o755
	case f.link != "":
		h.Typeflag, h.Mode, h.Linkname = tar.TypeSymlink, 0o777, f.link
	}
	if err := d.w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.WriteString(d.w, f.text)
	return err
}

// dpkgStatus is the contents of dpkg's list of what is installed.
func dpkgStatus(ctx context.Context, debs []string) (string, error) {
	var b strings.Builder
	for _, deb := range debs {
		control, err := output(exec.CommandContext(ctx, "dpkg-deb", "--field", deb))
		if err != nil {
			return "", err
		}
		first, rest, _ := strings.Cut(string(control), "\n")
		fmt.Fprintf(&b, "%s\nStatus: install ok installed\n%s\n", first, rest)
	}
	return b.String(), nil
}

// alternatives gives the links that the scripts of some packages would make.
func alternatives(debs []string) []file {
	triplet := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
	libraries := "usr/lib/" + triplet
	var files []file
	for _, alt := range []struct{ deb, name, link, target string }{
		{"mawk_", "awk", "usr/bin/awk", "/usr/bin/mawk"},
		{"libopenblas0-pthread_", "libblas.so.3-" + triplet, libraries + "/libblas.so.3", "/" + libraries + "/openblas-pthread/libblas.so.3"},
		{"libopenblas0-pthread_", "liblapack.so.3-" + triplet, libraries + "/liblapack.so.3", "/" + libraries + "/openblas-pthread/liblapack.so.3"},
		{"libopenblas0-pthread_", "libopenblas.so.0-" + triplet, libraries + "/libopenblas.so.0", "/" + libraries + "/openblas-pthread/libopenblas.so.0"},
	} {
		if !slices.ContainsFunc(debs, func(deb string) bool { return strings.HasPrefix(filepath.Base(deb), alt.deb) }) {
			continue
		}
		files = append(files,
			file{name: alt.link, link: "/etc/alternatives/" + alt.name},
			file{name: "etc/alternatives/" + alt.name, link: alt.target})
	}
	return files
}
