package tocjson

import (
	"math"
	"slices"
)

// maxDepth bounds the nesting of values that are skipped.
const maxDepth = 64

// integer reads a whole number of 64 bits, or null, into p.
func (d *Decoder) integer(p *int64) error {
	c, err := d.next()
	if err != nil {
		return err
	}
	if c == 'n' {
		return d.literal("null")
	}
	negative := c == '-'
	if negative {
		d.pos++
	}
	var v uint64
	digits, leadingZero := 0, false
	for ; ; digits++ {
		if d.pos == d.end {
			if err := d.must(1); err != nil {
				return err
			}
		}
		c := d.buf[d.pos]
		if c < '0' || c > '9' {
			break
		}
		if leadingZero {
			return d.syntax("number with a leading zero")
		}
		leadingZero = digits == 0 && c == '0'
		if v > math.MaxInt64/10 {
			return d.syntax("number of more than 64 bits")
		}
		v = v*10 + uint64(c-'0')
		d.pos++
	}
	switch c := d.buf[d.pos]; {
	case digits == 0:
		return d.syntax("want a number")
	case c == '.' || c == 'e' || c == 'E':
		return d.syntax("want a whole number")
	case negative && v <= -math.MinInt64:
		*p = int64(-v)
	case !negative && v <= math.MaxInt64:
		*p = int64(v)
	default:
		return d.syntax("number of more than 64 bits")
	}
	return nil
}

// skip reads over one value.
func (d *Decoder) skip(depth int) error {
	if depth > maxDepth {
		return d.syntax("values are nested too deep")
	}
	c, err := d.next()
	if err != nil {
		return err
	}
	switch c {
	case '{', '[':
		return d.skipMembers(c, depth)
	case '"':
		d.pos++
		return d.skipString()
	case 't':
		return d.literal("true")
	case 'f':
		return d.literal("false")
	case 'n':
		return d.literal("null")
	default:
		return d.skipNumber()
	}
}

func (d *Decoder) skipMembers(opening byte, depth int) error {
	d.pos++
	for d.first = true; ; {
		more, err := d.element(opening + 2) // ']' and '}' follow their openings by two
		if err != nil {
			return err
		}
		if !more {
			d.first = false
			return nil
		}
		if opening == '{' {
			if err := d.expect('"'); err != nil {
				return err
			}
			if err := d.skipString(); err != nil {
				return err
			}
			if err := d.expect(':'); err != nil {
				return err
			}
		}
		if err := d.skip(depth + 1); err != nil {
			return err
		}
	}
}

// skipString reads over the rest of a string, of any length.
func (d *Decoder) skipString() error {
	for {
		if err := d.must(1); err != nil {
			return err
		}
		c := d.buf[d.pos]
		d.pos++
		switch {
		case c == '"':
			return nil
		case c == '\\':
			d.key = d.key[:0]
			var err error
			if d.key, err = d.escape(d.key); err != nil {
				return err
			}
		case c < 0x20:
			return d.syntax("control character in a string")
		}
	}
}

// skipNumber reads over a number: -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?
func (d *Decoder) skipNumber() error {
	if err := d.take('-'); err != nil {
		return err
	}
	if err := d.must(1); err != nil {
		return err
	}
	if d.buf[d.pos] == '0' {
		d.pos++
	} else if err := d.digits(); err != nil {
		return err
	}
	if err := d.must(1); err != nil {
		return err
	}
	if d.buf[d.pos] == '.' {
		d.pos++
		if err := d.digits(); err != nil {
			return err
		}
	}
	if err := d.must(1); err != nil {
		return err
	}
	if c := d.buf[d.pos]; c == 'e' || c == 'E' {
		d.pos++
		if err := d.take('+', '-'); err != nil {
			return err
		}
		return d.digits()
	}
	return nil
}

// take takes the next byte if it is one of any.
func (d *Decoder) take(any ...byte) error {
	if err := d.must(1); err != nil {
		return err
	}
	if slices.Contains(any, d.buf[d.pos]) {
		d.pos++
	}
	return nil
}

// digits reads over one digit or more.
func (d *Decoder) digits() error {
	for n := 0; ; n++ {
		if err := d.must(1); err != nil {
			return err
		}
		if c := d.buf[d.pos]; c < '0' || c > '9' {
			if n == 0 {
				return d.syntax("want a digit")
			}
			return nil
		}
		d.pos++
	}
}
