// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"crypto/sha256"
	"encoding/binary"
	"iter"
	"math/big"
	"math/bits"
	"math/rand/v2"
	"net/netip"

	"go4.org/netipx"
)

// runLength is how many addresses of a space that nodes share a node takes one after the
// other. docs/design.md has the simulation that it was chosen by.
const runLength = 16

// windowRuns is how many runs are about one window of 256 addresses.
const windowRuns = 256 / runLength

// Candidates yields every usable address once, those after last first. It walks lazily,
// and over what is excluded in one step.
//
// In a node's own block that is round robin: ascending from last to the end, then from the
// first address up to last. If last is zero or not in the block, it starts at the first.
//
// In a space that nodes share, the usable addresses are cut into runs. A node goes through
// them in an order of its own, so nodes seldom meet, and through each run in ascending
// order. The order can be inverted, so last is all that a node has to remember. A space
// of more than 2^62 addresses ends there.
func (b *Block) Candidates(last netip.Addr) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		if b.Shared {
			b.order().after(last, yield)
		} else {
			b.roundRobin(last, yield)
		}
	}
}

func (b *Block) roundRobin(last netip.Addr, yield func(netip.Addr) bool) {
	if !b.Range.Contains(last) {
		last = b.Range.To()
	}
	next := last.Next() // zero after the family's last address
	if next.IsValid() && !each(b.Usable, next, b.Range.To(), yield) {
		return
	}
	each(b.Usable, b.Range.From(), last, yield)
}

// RandomAddress returns a random address of a block's range, in a very large one of its
// first 2^62. In a space that nodes share it is a usable one, or zero if there is none.
func (b *Block) RandomAddress() netip.Addr {
	if b.Shared {
		o := b.order()
		if o.size == 0 {
			return netip.Addr{}
		}
		return o.at(rand.Uint64N(o.size))
	}
	last := int64(1<<62 - 1)
	if n := distance(b.Range.From(), b.Range.To()); n.IsInt64() {
		last = min(last, n.Int64())
	}
	a, _ := offset(b.Range.From(), big.NewInt(rand.Int64N(last+1))) // inside
	return a
}

// Home returns the usable address at which the search for an identity's own one begins: the
// same on every node, as long as the pool's specification is. It is zero if there is none.
func (b *Block) Home(identity string) netip.Addr {
	o := b.order()
	if o.size == 0 {
		return netip.Addr{}
	}
	sum := sha256.Sum256([]byte(identity))
	return o.at(binary.BigEndian.Uint64(sum[:]) % o.size)
}

// EndOfRun returns the last address of the run that a lies in: the candidates after it are
// those of the next run. Who collides in a run has met another node there.
func (b *Block) EndOfRun(a netip.Addr) netip.Addr {
	o := b.order()
	if o.size == 0 {
		return a
	}
	i := o.index(a)
	return o.at(min(i-i%runLength+runLength, o.size) - 1)
}

// Contains reports whether a is usable in the block.
func (b *Block) Contains(a netip.Addr) bool { return within(b.Usable, a) }

// seedOf returns the seed of a node's order in the pools of a domain.
func seedOf(node, domain string) uint64 {
	sum := sha256.Sum256([]byte(node + "\n" + domain))
	return binary.BigEndian.Uint64(sum[:])
}

// order is the order in which one node goes through a space. Addresses have indexes from
// 0 to size-1, and index i is in run i/runLength. Runs are sorted in groups: the last group
// of the space comes first, and inside a group the order is the node's own.
type order struct {
	usable []netipx.IPRange
	size   uint64 // usable addresses, at most 2^62
	runs   uint64
	group  uint64 // runs in a group; a first group may have fewer
	seed   uint64
}

func (b *Block) order() *order {
	o := &order{usable: b.Usable, seed: b.Seed}
	for _, r := range b.Usable {
		o.size = min(o.size+count(r), maxSize)
	}
	o.runs = (o.size + runLength - 1) / runLength
	o.group = max(o.runs, 1)
	if b.FromEnd {
		o.group = windowRuns
	}
	return o
}

const maxSize = 1 << 62

// count returns how many addresses a range has, at most maxSize.
func count(r netipx.IPRange) uint64 {
	n := distance(r.From(), r.To())
	if !n.IsUint64() || n.Uint64() >= maxSize {
		return maxSize
	}
	return n.Uint64() + 1
}

// at returns the address with an index below size.
func (o *order) at(index uint64) netip.Addr {
	for _, r := range o.usable {
		n := count(r)
		if index < n {
			a, _ := offset(r.From(), new(big.Int).SetUint64(index)) // inside
			return a
		}
		index -= n
	}
	return netip.Addr{}
}

// index returns the index of the last usable address that is not after a, 0 if there is
// none. The size is not 0.
func (o *order) index(a netip.Addr) uint64 {
	before := uint64(0)
	for _, r := range o.usable {
		if a.Less(r.From()) {
			break
		}
		if r.Contains(a) {
			before += count(netipx.IPRangeFrom(r.From(), a))
			break
		}
		before += count(r)
	}
	return min(max(before, 1), o.size) - 1
}

// after yields all addresses, beginning with the one after last.
func (o *order) after(last netip.Addr, yield func(netip.Addr) bool) {
	if o.size == 0 {
		return
	}
	position, from := uint64(0), uint64(0) // where the node is: a run, and how much of it is done
	if last.IsValid() && last.BitLen() == o.usable[0].From().BitLen() {
		i := o.index(last)
		position, from = o.position(i/runLength), i%runLength+1
	}
	if !o.yieldRun(position, from, runLength, yield) {
		return
	}
	for p := position + 1; p < o.runs; p++ {
		if !o.yieldRun(p, 0, runLength, yield) {
			return
		}
	}
	for p := range position {
		if !o.yieldRun(p, 0, runLength, yield) {
			return
		}
	}
	o.yieldRun(position, 0, from, yield)
}

// yieldRun yields the addresses of the run at a position, of those from from up to, but
// not including to. It reports whether to go on.
func (o *order) yieldRun(position, from, to uint64, yield func(netip.Addr) bool) bool {
	first := o.run(position) * runLength
	to = min(to, o.size-first)
	if from >= to {
		return true
	}
	left := to - from
	skip := first + from
	for _, r := range o.usable {
		if n := count(r); skip >= n {
			skip -= n
			continue
		}
		a, _ := offset(r.From(), new(big.Int).SetUint64(skip)) // inside
		for skip = 0; left > 0 && a.IsValid() && !r.To().Less(a); left-- {
			if !yield(a) {
				return false
			}
			a = a.Next()
		}
	}
	return true
}

// run returns the run at a position of the order.
func (o *order) run(position uint64) uint64 {
	first, n, key := o.groupAt(position / o.group)
	return first + permute(position%o.group, n, key)
}

// position returns the position of a run in the order.
func (o *order) position(run uint64) uint64 {
	g := (o.runs - 1 - run) / o.group
	first, n, key := o.groupAt(g)
	return g*o.group + invert(run-first, n, key)
}

// groupAt returns the first run of a group, how many it has, and its key.
func (o *order) groupAt(g uint64) (first, n, key uint64) {
	end := o.runs - g*o.group
	n = min(end, o.group)
	return end - n, n, o.seed + g
}

// permute returns where a permutation of 0 to n-1 puts x. It is a Feistel network over the
// next larger power of four; what falls outside is put through it again. invert is its
// reverse.
func permute(x, n, key uint64) uint64 {
	for {
		if x = feistel(x, n, key, [rounds]uint64{0, 1, 2, 3}); x < n {
			return x
		}
	}
}

func invert(x, n, key uint64) uint64 {
	for {
		half := halfBits(n)
		x = swap(feistel(swap(x, half), n, key, [rounds]uint64{3, 2, 1, 0}), half)
		if x < n {
			return x
		}
	}
}

const rounds = 4

// halfBits returns half of the bits that numbers below n have, rounded up.
func halfBits(n uint64) int { return (bits.Len64(n-1) + 1) / 2 }

func swap(x uint64, half int) uint64 { return x&(1<<half-1)<<half | x>>half }

func feistel(x, n, key uint64, rounds [rounds]uint64) uint64 {
	half := halfBits(n)
	mask := uint64(1)<<half - 1
	left, right := x>>half, x&mask
	for _, round := range rounds {
		left, right = right, left^mix(right^mix(key^mix(round)))&mask
	}
	return left<<half | right
}

// mix is the finalizer of splitmix64 (Steele, Lea, Flood, 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
