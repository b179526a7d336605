// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"flag"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"
)

var simulate = flag.Bool("simulate", false, "print the tables of docs/design.md; takes some minutes")

// TestSimulation plays ADDs and DELs of many nodes in a shared pool, as claim.searchShared
// makes them, and wants the cost of an ADD to stay low until the pool is nearly full.
func TestSimulation(t *testing.T) {
	if *simulate {
		printTables()
		return
	}
	w := newSimulation("own order", runLength, 10, 1<<12, 10)
	for _, fill := range []float64{0.5, 0.9} {
		w.fill(fill)
		if collided, p90 := w.measure(2000); collided > 0.3 || p90 > 3 {
			t.Errorf("%.0f %% full: %.2f creates of an ADD collide, 90 %% of ADDs make at most %d requests", 100*fill, collided, p90)
		}
	}
}

var fills = []float64{0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99}

func printTables() {
	clusters := []struct {
		nodes int
		size  uint64
	}{{10, 1 << 12}, {100, 1 << 13}, {5000, 1 << 16}}
	header := func(first string) {
		fmt.Printf("\n| %s | 10 %% | 25 %% | 50 %% | 75 %% | 90 %% | 95 %% | 99 %% |\n|---|%s\n", first, strings.Repeat("--:|", len(fills)))
	}
	row := func(name string, w *simulation) {
		fmt.Printf("| %s |", name)
		for _, fill := range fills {
			w.fill(fill)
			collided, p90 := w.measure(20000)
			fmt.Printf(" %.2f, %d |", collided, p90)
		}
		fmt.Println()
	}
	for _, c := range clusters {
		header(fmt.Sprintf("%d nodes, %d addresses", c.nodes, c.size))
		for _, way := range []string{"own order", "stride", "one sequence"} {
			for _, length := range []uint64{8, 16, 32, 64} {
				if way != "own order" && length != 16 && length != 64 {
					continue
				}
				row(fmt.Sprintf("%s, runs of %d", way, length), newSimulation(way, length, c.nodes, c.size, 1))
			}
		}
	}
	header("own order, runs of 16")
	for _, c := range clusters {
		for _, rate := range []float64{0.1, 1, 10, 60} {
			row(fmt.Sprintf("%d nodes, %v ADDs a minute each", c.nodes, rate), newSimulation("own order", 16, c.nodes, c.size, rate))
		}
	}
}

// simulation is a shared pool of addresses 0 to size-1.
type simulation struct {
	r      *rand.Rand
	way    string
	length uint64 // of a run
	size   uint64
	age    int     // how many ADDs of all nodes a window is believed for
	holder []int32 // node+1 by address
	held   []uint64
	nodes  []simNode
	now    int // ADDs so far
}

type simNode struct {
	last          uint64 // address
	key           uint64
	free          []uint64 // of the window that was listed last
	window        uint64
	listed        int
	knows, crowds bool
}

func newSimulation(way string, length uint64, nodes int, size uint64, perMinute float64) *simulation {
	w := &simulation{
		r: rand.New(rand.NewSource(19690720)), way: way, length: length, size: size, age: int(perMinute * float64(nodes) / 6), // 10 s
		holder: make([]int32, size), nodes: make([]simNode, nodes),
	}
	for i := range w.nodes {
		w.nodes[i].key = w.r.Uint64()
		w.nodes[i].last = w.run(&w.nodes[i], 0)*length + length - 1
	}
	return w
}

// run returns the run at a position of a node's order; position is its reverse.
func (w *simulation) run(n *simNode, position uint64) uint64 {
	runs := w.size / w.length
	switch w.way {
	case "stride": // runs is a power of two, so every odd number is coprime to it
		return (n.key>>32 + position*(n.key|1)) % runs
	case "one sequence":
		return (n.key>>32 + position) % runs
	}
	return permute(position, runs, n.key)
}

func (w *simulation) position(n *simNode, run uint64) uint64 {
	runs := w.size / w.length
	from := (run - n.key>>32) % runs // runs divides 2^64
	switch w.way {
	case "stride":
		inverse := n.key | 1 // Newton's method, modulo 2^64
		for range 6 {
			inverse *= 2 - (n.key|1)*inverse
		}
		return from * inverse % runs
	case "one sequence":
		return from
	}
	return invert(run, runs, n.key)
}

// next returns the first candidate after last for which ok is true.
func (w *simulation) next(n *simNode, ok func(uint64) bool) (uint64, bool) {
	at := n.last
	for range w.size {
		if at++; at%w.length == 0 || at == w.size {
			at = w.run(n, (w.position(n, (at-1)/w.length)+1)%(w.size/w.length)) * w.length
		}
		if ok(at) {
			return at, true
		}
	}
	return 0, false
}

// add is an ADD of a node. It returns how many creates collided, and all its requests.
func (w *simulation) add(i int) (collided, requests int) {
	n, me := &w.nodes[i], int32(i+1)
	w.now++
	create := func(a uint64) bool {
		requests++
		if w.holder[a] != 0 {
			collided++
			n.last = a - a%w.length + w.length - 1
			return false
		}
		w.holder[a], n.last = me, a
		w.held = append(w.held, a)
		return true
	}
	current := func() bool { return n.knows && w.now-n.listed < w.age }
	requests++ // the pool's metadata
	if !n.knows || !n.crowds && !current() {
		for range 2 {
			a, ok := w.next(n, func(a uint64) bool { return w.holder[a] != me })
			if ok && create(a) {
				return collided, requests
			}
			n.last = a - a%w.length + w.length - 1
		}
	}
	seen := map[uint64]bool{}
	for k := 0; ; k++ {
		if k > 0 || current() {
			before := collided
			for j := 0; j < len(n.free) && collided < before+2; j++ {
				a := n.free[j]
				if w.holder[a] == me {
					continue
				}
				if create(a) {
					return collided, requests
				}
				n.free = slices.Delete(n.free, j, j+1)
				j--
			}
			seen[n.window] = true
		}
		a, ok := w.next(n, func(a uint64) bool { return !seen[a/256] })
		if !ok || k == 8 {
			break
		}
		n.last, n.window, n.listed, n.knows, n.free = a, a/256, w.now, true, nil
		requests++
		for a := n.window * 256; a < (n.window+1)*256; a++ {
			if w.holder[a] == 0 {
				n.free = append(n.free, a)
			}
		}
		n.crowds = len(n.free) <= 192
		w.r.Shuffle(len(n.free), func(i, j int) { n.free[i], n.free[j] = n.free[j], n.free[i] })
	}
	requests++ // the list of all
	a, _ := w.next(n, func(a uint64) bool { return w.holder[a] == 0 })
	create(a)
	return collided, requests
}

// del is a DEL of any container. Its node remembers what it has released.
func (w *simulation) del() {
	i := w.r.Intn(len(w.held))
	a := w.held[i]
	n := &w.nodes[w.holder[a]-1]
	if n.knows && !slices.Contains(n.free, a) {
		n.free = append(n.free, a)
	}
	w.holder[a] = 0
	w.held[i] = w.held[len(w.held)-1]
	w.held = w.held[:len(w.held)-1]
}

// fill claims addresses until so much is held, and goes on until what is held has been
// replaced.
func (w *simulation) fill(part float64) {
	for float64(len(w.held)) < part*float64(w.size) {
		w.add(w.r.Intn(len(w.nodes)))
	}
	w.measure(min(len(w.held), 20000))
}

// measure replaces that many containers, on other nodes. It returns how many creates of an
// ADD collided, and the requests of an ADD, 90th percentile.
func (w *simulation) measure(adds int) (collided float64, p90 int) {
	var all []int
	sum := 0
	for range adds {
		w.del()
		c, requests := w.add(w.r.Intn(len(w.nodes)))
		sum += c
		all = append(all, requests)
	}
	if slices.Sort(all); len(all) == 0 {
		return 0, 0
	}
	return float64(sum) / float64(adds), all[len(all)*9/10]
}
