package tocjson

import (
	"encoding/base64"
	"fmt"
	"io"
	"unicode/utf16"
	"unicode/utf8"
)

// fill makes at least n bytes of input available in buf[pos:end], n being at
// most a few bytes. It returns io.EOF if none is left, ErrSyntax if fewer.
func (d *Decoder) fill(n int) error {
	if d.end-d.pos >= n {
		return nil
	}
	d.read += int64(d.pos)
	d.end = copy(d.buf, d.buf[d.pos:d.end])
	d.pos = 0
	for d.end < n && d.readErr == nil {
		var m int
		m, d.readErr = d.r.Read(d.buf[d.end:])
		d.end += m
	}
	switch {
	case d.end >= n:
		return nil
	case d.readErr != io.EOF:
		return d.readErr
	case d.end == 0:
		return io.EOF
	default:
		return d.syntax("it is cut short")
	}
}

// must is fill where the input may not end.
func (d *Decoder) must(n int) error {
	err := d.fill(n)
	if err == io.EOF {
		return d.syntax("it is cut short")
	}
	return err
}

// token skips white space and returns the next byte without taking it, or
// io.EOF.
func (d *Decoder) token() (byte, error) {
	for {
		for d.pos < d.end {
			switch c := d.buf[d.pos]; c {
			case ' ', '\t', '\n', '\r':
				d.pos++
			default:
				return c, nil
			}
		}
		if err := d.fill(1); err != nil {
			return 0, err
		}
	}
}

// next is token where the input may not end.
func (d *Decoder) next() (byte, error) {
	c, err := d.token()
	if err == io.EOF {
		err = d.syntax("it is cut short")
	}
	return c, err
}

func (d *Decoder) expect(want byte) error {
	c, err := d.next()
	if err != nil {
		return err
	}
	if c != want {
		return d.syntax("want " + string(rune(want)))
	}
	d.pos++
	return nil
}

// element stands before the next member of an object or array: it takes the
// comma, or the closing byte and reports false.
func (d *Decoder) element(closing byte) (bool, error) {
	c, err := d.next()
	if err != nil {
		return false, err
	}
	first := d.first
	d.first = false
	switch {
	case c == closing:
		d.pos++
		return false, nil
	case first:
		return true, nil
	case c != ',':
		return false, d.syntax("want a comma")
	}
	d.pos++
	return true, nil
}

// readKey reads a member's name into d.key, and the colon.
func (d *Decoder) readKey() (err error) {
	if err := d.expect('"'); err != nil {
		return err
	}
	if d.key, err = d.str(d.key[:0]); err != nil {
		return err
	}
	if d.pos < d.end && d.buf[d.pos] == ':' {
		d.pos++
		return nil
	}
	return d.expect(':')
}

// null takes a null, if one is next.
func (d *Decoder) null() (bool, error) {
	c, err := d.next()
	if err != nil || c != 'n' {
		return false, err
	}
	return true, d.literal("null")
}

func (d *Decoder) literal(want string) error {
	if err := d.must(len(want)); err != nil {
		return err
	}
	if string(d.buf[d.pos:d.pos+len(want)]) != want {
		return d.syntax("want " + want)
	}
	d.pos += len(want)
	return nil
}

// text reads a string, or null, into p.
func (d *Decoder) text(p *[]byte) error {
	c, err := d.next()
	switch {
	case err != nil:
		return err
	case c == 'n':
		return d.literal("null")
	case c != '"':
		return d.syntax("want a string")
	}
	d.pos++
	*p, err = d.str((*p)[:0])
	return err
}

// bytes reads a string of base64, or null, into p.
func (d *Decoder) bytes(p *[]byte) error {
	if err := d.text(&d.base64); err != nil {
		return err
	}
	b, err := base64.StdEncoding.AppendDecode((*p)[:0], d.base64)
	if err != nil {
		return d.syntax("malformed base64")
	}
	*p, d.base64 = b, d.base64[:0]
	return nil
}

// plain has the bytes of a string that stand for themselves.
var plain = func() (plain [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		plain[c] = c != '"' && c != '\\'
	}
	return plain
}()

// str appends the rest of a string to dst; its opening quote was taken.
func (d *Decoder) str(dst []byte) ([]byte, error) {
	for {
		rest := d.buf[d.pos:d.end]
		n := 0
		for n < len(rest) && plain[rest[n]] {
			n++
		}
		i := d.pos + n
		if len(dst)+n > MaxString {
			return dst, fmt.Errorf("%w: a string of more than %d bytes", ErrTooLong, MaxString)
		}
		dst = append(dst, rest[:n]...)
		d.pos = i
		if i == d.end {
			if err := d.must(1); err != nil {
				return dst, err
			}
			continue
		}
		switch c := d.buf[i]; {
		case c == '"':
			d.pos++
			return dst, nil
		case c == '\\':
			d.pos++
			var err error
			if dst, err = d.escape(dst); err != nil {
				return dst, err
			}
		case c < 0x20:
			return dst, d.syntax("control character in a string")
		default:
			// A rune may have fewer bytes than are asked for here, but not
			// fewer than are left: a closing quote and brackets follow it.
			if err := d.must(utf8.UTFMax); err != nil {
				return dst, err
			}
			r, n := utf8.DecodeRune(d.buf[d.pos:d.end])
			dst = utf8.AppendRune(dst, r)
			d.pos += n
		}
	}
}

// escape appends what an escape sequence stands for; its backslash was taken.
func (d *Decoder) escape(dst []byte) ([]byte, error) {
	if err := d.must(1); err != nil {
		return dst, err
	}
	c := d.buf[d.pos]
	d.pos++
	switch c {
	case '"', '\\', '/':
		return append(dst, c), nil
	case 'b':
		return append(dst, '\b'), nil
	case 'f':
		return append(dst, '\f'), nil
	case 'n':
		return append(dst, '\n'), nil
	case 'r':
		return append(dst, '\r'), nil
	case 't':
		return append(dst, '\t'), nil
	case 'u':
	default:
		return dst, d.syntax("unknown escape sequence")
	}
	r, err := d.hex4()
	if err != nil {
		return dst, err
	}
	if !utf16.IsSurrogate(r) {
		return utf8.AppendRune(dst, r), nil
	}
	// Half of a pair. Where the other half does not follow, it stands for
	// U+FFFD alone, and what follows for itself.
	if err := d.must(2); err != nil {
		return dst, err
	}
	if d.buf[d.pos] == '\\' && d.buf[d.pos+1] == 'u' {
		back := d.read + int64(d.pos)
		if err := d.must(6); err != nil {
			return dst, err
		}
		d.pos += 2
		r2, err := d.hex4()
		if err != nil {
			return dst, err
		}
		if pair := utf16.DecodeRune(r, r2); pair != utf8.RuneError {
			return utf8.AppendRune(dst, pair), nil
		}
		d.pos = int(back - d.read)
	}
	return utf8.AppendRune(dst, utf8.RuneError), nil
}

func (d *Decoder) hex4() (rune, error) {
	if err := d.must(4); err != nil {
		return 0, err
	}
	var r rune
	for _, c := range d.buf[d.pos : d.pos+4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, d.syntax("malformed escape sequence")
		}
		r = r<<4 | rune(c)
	}
	d.pos += 4
	return r, nil
}
