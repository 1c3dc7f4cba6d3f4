package testbed

import (
	"fmt"
	"os"
	"strings"
)

// Mount is one line of mountinfo(5).
type Mount struct {
	Point   string // where
	Type    string // of file system
	Source  string
	Options string // of the file system
}

func (m Mount) String() string {
	return fmt.Sprintf("%s (%s of %s)", m.Point, m.Type, m.Source)
}

// of says whether the mount is in dir, or made of something in it.
func (m Mount) of(dir string) bool {
	return m.Point == dir || strings.HasPrefix(m.Point, dir+"/") ||
		strings.Contains(m.Source, dir+"/") || strings.Contains(m.Options, dir+"/")
}

// Mounts lists the mounts that this process sees, later ones later.
func Mounts() ([]Mount, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var mounts []Mount
	for line := range strings.Lines(string(info)) {
		// ID PARENT DEVICE ROOT POINT OPTIONS TAG… - TYPE SOURCE OPTIONS
		head, tail, ok := strings.Cut(strings.TrimSpace(line), " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 6 || len(t) < 3 {
			return nil, fmt.Errorf("mountinfo has a line of another form: %q", line)
		}
		mounts = append(mounts, Mount{Point: unescape(h[4]), Type: t[0], Source: unescape(t[1]), Options: unescape(t[2])})
	}
	return mounts, nil
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
