// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package whereabouts

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// config is the CNI configuration of a network that uses whereabouts or this project.
type config struct {
	network *network
	all     map[string]any // the whole configuration
	ipam    map[string]any // its ipam section, which is part of it
	own     ipamConfig
	from    bool // whether it uses whereabouts today

	// cannot are what this project has no place for.
	cannot []string
}

// ipamConfig are whereabouts' keys that decide about addresses.
type ipamConfig struct {
	Type        string `json:"type"`
	PoolName    string `json:"poolName"` // of this project
	NetworkName string `json:"network_name"`
	SliceSize   string `json:"node_slice_size"`
	Overlapping *bool  `json:"enable_overlapping_ranges"`
	Gateway     string `json:"gateway"`
	Routes      []struct {
		Dst string `json:"dst"`
		GW  string `json:"gw"`
	} `json:"routes"`
	rangeConfig
	Ranges []rangeConfig `json:"ipRanges"`
}

type rangeConfig struct {
	Range   string   `json:"range"`
	Start   string   `json:"range_start"`
	End     string   `json:"range_end"`
	Exclude []string `json:"exclude"`
}

// Keys of whereabouts' that say nothing about addresses: how it logs, elects a leader,
// and reaches the API server.
var aside = []string{
	"type", "range", "range_start", "range_end", "exclude", "ipRanges", "gateway", "routes", "network_name", "node_slice_size", "enable_overlapping_ranges",
	"datastore", "log_file", "log_level", "kubernetes", "configuration_path", "sleep_for_race", "reconciler_cron_expression",
	"leader_lease_duration", "leader_renew_deadline", "leader_retry_period",
}

// parseConfig returns nil for a network of another IPAM.
func parseConfig(n *network) *config {
	c := &config{network: n}
	if json.Unmarshal([]byte(n.Spec.Config), &c.all) != nil {
		return nil // multus cannot read it either
	}
	c.ipam, _ = c.all["ipam"].(map[string]any)
	plugins, _ := c.all["plugins"].([]any)
	for _, p := range plugins {
		plugin, _ := p.(map[string]any)
		if ipam, ok := plugin["ipam"].(map[string]any); ok && c.ipam == nil {
			c.ipam = ipam
		}
	}
	data, err := json.Marshal(c.ipam)
	if err == nil {
		err = json.Unmarshal(data, &c.own)
	}
	c.from = c.ipam["type"] == "whereabouts"
	if !c.from && c.ipam["type"] != "nv-ipam" {
		return nil
	}
	if err != nil {
		c.cannot = append(c.cannot, "its ipam section cannot be read: "+err.Error())
	}
	if c.from {
		c.check()
	}
	return c
}

// ranges are the configured ones; a container gets one address of each.
func (c *config) ranges() []rangeConfig {
	if c.own.Range != "" {
		return append([]rangeConfig{c.own.rangeConfig}, c.own.Ranges...)
	}
	return c.own.Ranges
}

// overlapping reports whether an address is given once across ranges, which is
// whereabouts' default.
func (c *config) overlapping() bool { return c.own.Overlapping == nil || *c.own.Overlapping }

// check finds what cannot be mapped. Such a network is left as it is: whoever uses it
// would get something else.
func (c *config) check() {
	cannot := func(format string, args ...any) { c.cannot = append(c.cannot, fmt.Sprintf(format, args...)) }
	ranges := c.ranges()
	families := map[bool]bool{}
	for _, r := range ranges {
		p, err := r.parse()
		if err != nil {
			cannot("%v", err)
			continue
		}
		if families[p.subnet.Addr().Is4()] {
			cannot("ipRanges has two ranges of one address family: an interface gets one address of each family; make two networks of it")
		}
		families[p.subnet.Addr().Is4()] = true
	}
	switch {
	case len(ranges) == 0:
		cannot("it has no range: it may be in whereabouts.conf on the nodes; write it into the network")
	case len(ranges) > 2:
		cannot("ipRanges has %d ranges: a network names two pools at most", len(ranges))
	case c.own.SliceSize != "" && len(ranges) > 1:
		cannot("node_slice_size with more than one range: whereabouts slices the first only")
	}
	if bits := c.sliceBits(); c.own.SliceSize != "" && bits == 0 {
		cannot("node_slice_size %q is no prefix length", c.own.SliceSize)
	}
	for _, r := range c.own.Routes {
		if r.GW != "" && r.GW != c.own.Gateway {
			cannot("routes: %s via %s: a pool's routes go via its gateway", r.Dst, r.GW)
		} else if c.own.Gateway == "" {
			cannot("routes: %s has no gateway: a pool's routes go via its gateway", r.Dst)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.ipam)) {
		if !slices.Contains(aside, key) && !empty(c.ipam[key]) {
			cannot("%s: there is nothing like it", key)
		}
	}
}

func empty(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return v == nil || v == ""
}

// sliceBits is the prefix length of a node's slice, 0 without slices.
func (c *config) sliceBits() int {
	bits, err := strconv.Atoi(strings.TrimPrefix(c.own.SliceSize, "/"))
	if err != nil || bits < 1 || bits > 128 {
		return 0
	}
	return bits
}

// parsedRange is a range with what whereabouts gives of it.
type parsedRange struct {
	subnet      netip.Prefix
	first, last netip.Addr // of what is given
	whole       bool       // that is all of it
	exclude     []netip.Prefix
}

// parse reads "CIDR" or "first-last/length", as whereabouts does: the first and the last
// address are not given, and a start or end that lies outside of the rest has no effect.
func (r *rangeConfig) parse() (p parsedRange, err error) {
	text, start, end := r.Range, r.Start, r.End
	if from, to, found := strings.Cut(text, "-"); found {
		text, start = to, from
		end, _, _ = strings.Cut(to, "/")
	}
	if p.subnet, err = netip.ParsePrefix(text); err != nil {
		return p, fmt.Errorf("range %q: %w", r.Range, err)
	}
	p.subnet = p.subnet.Masked()
	if p.subnet.Addr().BitLen()-p.subnet.Bits() < 2 {
		return p, fmt.Errorf("range %q: whereabouts gives nothing of it", r.Range)
	}
	p.first, p.last = p.subnet.Addr().Next(), lastOf(p.subnet).Prev()
	p.whole = true
	within := func(text string) (netip.Addr, bool) {
		a, err := netip.ParseAddr(text)
		return a, err == nil && !a.Less(p.first) && !p.last.Less(a)
	}
	if a, ok := within(start); ok && a != p.first {
		p.first, p.whole = a, false
	}
	if a, ok := within(end); ok && a != p.last {
		p.last, p.whole = a, false
	}
	for _, text := range r.Exclude {
		e, err := parseExclude(text)
		if err != nil {
			return p, fmt.Errorf("exclude %q of range %q: %w", text, r.Range, err)
		}
		if e.Overlaps(p.subnet) {
			p.exclude = append(p.exclude, e)
		}
	}
	return p, nil
}

// parseExclude reads a CIDR or an address.
func parseExclude(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return a.Prefix(a.BitLen())
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	bytes := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(bytes)
	return a
}

// normalize is how whereabouts writes a range or an address into a name.
func normalize(text string) string {
	if strings.HasSuffix(text, ":") {
		text += "0"
	}
	return strings.NewReplacer(":", "-", "/", "-").Replace(text)
}
