// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"hash/fnv"
	"net/netip"
	"strings"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// A field manager's name has at most 128 characters. So behind its prefix there is room
// for 29 hashes of four characters, which are 24 bits.
const (
	revisionGroups = 29
	revisionLength = 4
)

// BlocksManager returns the name of the field manager that writes these blocks into
// status.allocations: v1alpha1.BlocksManagerPrefix, and a hash for each group of nodes. It
// changes if a block does, and then only in the hash of that node's group.
func BlocksManager(blocks []Assignment) string {
	var groups [revisionGroups]hash.Hash
	var line []byte
	for _, a := range blocks {
		g := &groups[groupOf(a.Node)]
		if *g == nil {
			*g = sha256.New()
		}
		line = a.appendTo(line[:0])
		_, _ = (*g).Write(line) // never fails
	}
	var name strings.Builder
	name.WriteString(v1alpha1.BlocksManagerPrefix)
	for _, g := range groups {
		sum := make([]byte, sha256.Size) // of a group without nodes
		if g != nil {
			sum = g.Sum(nil)
		}
		name.WriteString(base64.RawURLEncoding.EncodeToString(sum)[:revisionLength])
	}
	return name.String()
}

// Revision returns what of the name of a field manager changes if the node's blocks do:
// one of BlocksManager's hashes; all of the name if it is of an earlier version, or the
// node looks at other nodes' blocks as well. It is "" for a manager of anything else.
func Revision(manager, node string, others bool) string {
	hashes, found := strings.CutPrefix(manager, v1alpha1.BlocksManagerPrefix)
	if !found {
		return ""
	}
	if others || len(hashes) != revisionGroups*revisionLength {
		return manager
	}
	at := groupOf(node) * revisionLength
	return fmt.Sprintf("%s%d-%s", v1alpha1.BlocksManagerPrefix, groupOf(node), hashes[at:at+revisionLength])
}

func groupOf(node string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(node)) // never fails
	return int(h.Sum32() % revisionGroups)
}

func (a Assignment) appendTo(line []byte) []byte {
	line = append(line, a.Node...)
	for _, addr := range []netip.Addr{a.Range.From(), a.Range.To(), a.Gateway} {
		line = addr.AppendTo(append(line, ' '))
	}
	return append(line, '\n')
}
