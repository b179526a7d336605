// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go4.org/netipx"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Map is a pool, or a part of it, as a picture shows it: its parts, each of which is a map
// again, or its addresses if they are few.
type Map struct {
	Pool Pool `json:"pool"`
	// From and To are what is shown.
	From string `json:"from"`
	To   string `json:"to"`
	// Whole is true if that is all of the pool.
	Whole bool `json:"whole,omitempty"`
	// Block is the block that it is a part of, if it is one.
	Block *Part  `json:"block,omitempty"`
	Parts []Part `json:"parts,omitempty"`
	// Sparse is true if parts without a held address are left out.
	Sparse bool `json:"sparse,omitempty"`
	// Cells are all addresses, if there are no parts: see cellsOf.
	Cells string `json:"cells,omitempty"`
}

// Part is a node's block, a space between blocks, or an aligned window.
type Part struct {
	From string `json:"from"`
	To   string `json:"to"`
	Node string `json:"node,omitempty"`
	// Earlier is true for a block of an earlier specification, Unassigned for space from
	// which no node takes addresses.
	Earlier    bool `json:"earlier,omitempty"`
	Unassigned bool `json:"unassigned,omitempty"`
	// Size is how many addresses can be given automatically, Held how many are held or
	// rest, requested ones included. Leaked and Doubtful of these look leaked, or may be.
	Size     int64 `json:"size"`
	Held     int   `json:"held"`
	Leaked   int   `json:"leaked,omitempty"`
	Doubtful int   `json:"doubtful,omitempty"`
	// Cells are its addresses, if there are few in all of the map.
	Cells string `json:"cells,omitempty"`
}

// The cells: what an address is.
const (
	cellFree       = 'f'
	cellUnassigned = 'u'
	cellExcluded   = 'x'
	cellGateway    = 'g'
	cellInUse      = 'h'
	cellReserved   = 'r'
	cellCooling    = 'c' // released, and rests
	cellLeaked     = 'l'
	cellDoubtful   = 'd'
)

var cellOfKind = map[pool.Kind]byte{pool.Free: cellFree, pool.Unassigned: cellUnassigned, pool.Excluded: cellExcluded, pool.Gateway: cellGateway}

const (
	// maxCells is how many addresses are shown as such in one part, and maxAllCells in
	// one map.
	maxCells    = 1024
	maxAllCells = 1<<16 + 2*maxCells
	// maxWindows is how many windows a part is cut into. They have 2^windowBits addresses,
	// or more by windowGrowth bits at a time, until they are few enough.
	maxWindows   = 1024
	windowBits   = 8
	windowGrowth = 4
)

// Map returns the map of a pool, or of a range of it if that is valid.
func (s *Snapshot) Map(ref PoolRef, r netipx.IPRange) (*Map, error) {
	m, err := s.mapping(ref)
	if m == nil || m.parsed == nil || err != nil {
		return m.none(s), err
	}
	if r.IsValid() {
		return m.part(r), nil
	}
	return m.whole(), nil
}

// MapAt returns the map that shows an address of a pool as such.
func (s *Snapshot) MapAt(ref PoolRef, addr netip.Addr) (*Map, error) {
	m, err := s.mapping(ref)
	if m == nil || m.parsed == nil || err != nil {
		return m.none(s), err
	}
	for _, segment := range m.segments {
		if segment.Range.Contains(addr) {
			r := segment.Range
			if tooMany(r) {
				r = window(r, addr, addr.BitLen()-windowBits)
			}
			return m.part(r), nil
		}
	}
	return nil, fmt.Errorf("%s is not an address of %s %s", addr, ref.Kind, ref.Name)
}

// mapping is a pool of which a map is made.
type mapping struct {
	*Snapshot

	object   *pool.Object
	site     *site
	parsed   *pool.Pool // nil if its specification is invalid
	segments []pool.Segment
	held     map[netip.Addr]*v1alpha1.IPAllocation
	addrs    []netip.Addr // those of held, sorted
}

func (s *Snapshot) mapping(ref PoolRef) (*mapping, error) {
	o, err := s.pool(ref)
	if err != nil {
		return nil, err
	}
	m := &mapping{Snapshot: s, object: o, site: s.record.site(o.Meta.Namespace)}
	parsed, errs := o.Parse()
	if len(errs) > 0 {
		return m, nil // Pool says what is wrong
	}
	m.parsed, m.segments, m.held = parsed, parsed.Segments(o.Blocks()), s.heldBy(o)
	for addr := range m.held {
		m.addrs = append(m.addrs, addr)
	}
	slices.SortFunc(m.addrs, netip.Addr.Compare)
	return m, nil
}

func (m *mapping) none(s *Snapshot) *Map {
	if m == nil {
		return nil
	}
	return &Map{Pool: s.record.pool(m.site, m.object, false), Whole: true}
}

func (m *mapping) made(r netipx.IPRange) *Map {
	out := m.none(m.Snapshot)
	out.From, out.To, out.Whole = r.From().String(), r.To().String(), false
	return out
}

// whole shows the segments; a pool of one is shown as a part.
func (m *mapping) whole() *Map {
	all := netipx.IPRangeFrom(m.segments[0].Range.From(), m.segments[len(m.segments)-1].Range.To())
	if len(m.segments) == 1 {
		out := m.part(all)
		out.Whole, out.Block = true, nil
		return out
	}
	out := m.made(all)
	out.Whole = true
	var ranges []netipx.IPRange
	for i := range m.segments {
		ranges = append(ranges, m.segments[i].Range)
		out.Parts = append(out.Parts, m.segment(&m.segments[i]))
	}
	m.fill(out.Parts, ranges)
	return out
}

// part shows a range: the addresses, or windows.
func (m *mapping) part(r netipx.IPRange) *Map {
	out := m.made(r)
	for i := range m.segments {
		if s := &m.segments[i]; s.Range.Contains(r.From()) && s.Range.Contains(r.To()) && (s.Node != "" || len(m.segments) > 1) {
			p := m.segment(s)
			out.Block = &p
			break
		}
	}
	if !tooMany(r) {
		out.Cells = m.cellsOf(r)
		return out
	}
	windows, sparse := m.windows(r)
	for _, w := range windows {
		out.Parts = append(out.Parts, m.window(w))
	}
	out.Sparse = sparse
	m.fill(out.Parts, windows)
	return out
}

func (m *mapping) segment(s *pool.Segment) Part {
	p := Part{From: s.Range.From().String(), To: s.Range.To().String(), Node: s.Node, Earlier: s.Earlier, Unassigned: !s.Given, Size: s.Size()}
	m.count(&p, s.Range)
	return p
}

// window is an aligned part. How many of its addresses can be given is not counted: it may
// be large, and exclusions are seen in its cells.
func (m *mapping) window(r netipx.IPRange) Part {
	p := Part{From: r.From().String(), To: r.To().String(), Size: sizeOf(r)}
	m.count(&p, r)
	return p
}

func (m *mapping) count(p *Part, r netipx.IPRange) {
	for _, addr := range m.within(r) {
		p.Held++
		switch m.wrong[m.held[addr]].State {
		case stateLeaked:
			p.Leaked++
		case stateHeld:
			p.Doubtful++
		}
	}
}

// within returns the held addresses of a range.
func (m *mapping) within(r netipx.IPRange) []netip.Addr {
	from, _ := slices.BinarySearchFunc(m.addrs, r.From(), netip.Addr.Compare)
	to, found := slices.BinarySearchFunc(m.addrs, r.To(), netip.Addr.Compare)
	if found {
		to++
	}
	return m.addrs[from:max(from, to)]
}

// fill enters the cells of the parts, if there are few enough of them.
func (m *mapping) fill(parts []Part, ranges []netipx.IPRange) {
	sum := int64(0)
	for _, r := range ranges {
		if !tooMany(r) {
			sum += sizeOf(r)
		}
	}
	if sum > maxAllCells {
		return
	}
	for i, r := range ranges {
		if !tooMany(r) {
			parts[i].Cells = m.cellsOf(r)
		}
	}
}

// cellsOf returns the cells of a range, as lengths and letters: "3f1h" is fffh.
func (m *mapping) cellsOf(r netipx.IPRange) string {
	var out strings.Builder
	last, n := byte(0), 0
	flush := func() {
		if n > 0 {
			out.WriteString(strconv.Itoa(n))
			out.WriteByte(last)
		}
	}
	at := 0 // the segment
	for addr := r.From(); addr.IsValid() && !r.To().Less(addr); addr = addr.Next() {
		for at < len(m.segments)-1 && m.segments[at].Range.To().Less(addr) {
			at++
		}
		cell := m.cell(&m.segments[at], addr)
		if cell != last {
			flush()
			last, n = cell, 0
		}
		n++
	}
	flush()
	return out.String()
}

func (m *mapping) cell(s *pool.Segment, addr netip.Addr) byte {
	a := m.held[addr]
	if a == nil {
		return cellOfKind[s.Kind(addr)]
	}
	switch m.wrong[a].State {
	case stateLeaked:
		return cellLeaked
	case stateHeld:
		return cellDoubtful
	}
	switch {
	case a.Spec.Held():
		return cellInUse
	case a.Spec.Rests():
		return cellCooling
	}
	return cellReserved // or released, and kept for its owner
}

// windows cuts a range into aligned windows: all of them, or those with held addresses if
// there are too many.
func (m *mapping) windows(r netipx.IPRange) (out []netipx.IPRange, sparse bool) {
	for length := r.From().BitLen() - windowBits; ; length = max(0, length-windowGrowth) {
		if all, ok := everyWindow(r, length); ok {
			return all, false
		}
		out = nil
		for _, addr := range m.within(r) {
			if w := window(r, addr, length); len(out) == 0 || out[len(out)-1] != w {
				out = append(out, w)
			}
		}
		if len(out) <= maxWindows {
			return out, true
		}
	}
}

// everyWindow returns all windows of a range, if there are not too many.
func everyWindow(r netipx.IPRange, length int) (out []netipx.IPRange, ok bool) {
	for addr := r.From(); addr.IsValid() && !r.To().Less(addr); {
		if len(out) == maxWindows {
			return nil, false
		}
		w := window(r, addr, length)
		out = append(out, w)
		addr = w.To().Next()
	}
	return out, true
}

// window returns what the aligned window of an address has in common with r, in which the
// address lies.
func window(r netipx.IPRange, addr netip.Addr, length int) netipx.IPRange {
	prefix, _ := addr.Prefix(length) // no more than the address has
	w := netipx.RangeOfPrefix(prefix)
	from, to := w.From(), w.To()
	if from.Less(r.From()) {
		from = r.From()
	}
	if r.To().Less(to) {
		to = r.To()
	}
	return netipx.IPRangeFrom(from, to)
}

// greatest is the largest size that is told: every JSON reader knows integers up to it.
const greatest = 1<<53 - 1

// sizeOf returns how many addresses a range has, at most greatest.
func sizeOf(r netipx.IPRange) int64 {
	from, to := r.From().As16(), r.To().As16()
	high := binary.BigEndian.Uint64(to[:8]) - binary.BigEndian.Uint64(from[:8])
	low, borrow := bits.Sub64(binary.BigEndian.Uint64(to[8:]), binary.BigEndian.Uint64(from[8:]), 0)
	if high-borrow > 0 || low >= greatest {
		return greatest
	}
	return int64(low) + 1
}

// tooMany reports whether the addresses of a range are too many to be shown as such.
func tooMany(r netipx.IPRange) bool { return sizeOf(r) > maxCells }
