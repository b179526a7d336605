// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"bytes"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Claiming enters an address for an attachment that is about to claim it, and
// reports whether the entry is taken by another one. It is how the processes on one
// node keep out of each other's way without a request.
func (h *Hint) Claiming(e Entry) (taken bool) {
	err := h.link(e.text(""), "claims", e.fileName())
	if errors.Is(err, fs.ErrExist) {
		return true
	}
	h.failed("entering an address", err)
	return false
}

// ClaimingRequested enters a requested address for an attachment that is about to
// claim it. If another attachment has the entry, that does not mean that it has the
// address: the API server knows, and it is asked whatever the hint says.
func (h *Hint) ClaimingRequested(e Entry) {
	if h.Claiming(e) {
		h.failed("entering an address", h.linkOnce(e.text(""), "claims", e.unanswered().besideName()))
	}
}

// Claimed enters what the API server has said: the address is the attachment's.
func (h *Hint) Claimed(e Entry) {
	if h.failed("entering a claim", h.replace(e.text(e.UID), "claims", e.fileName())) {
		return
	}
	h.failed("entering a claim", h.remove("claims", e.unanswered().besideName()))
}

// Elsewhere enters that somebody else holds the address that was to be claimed.
func (h *Hint) Elsewhere(e Entry) {
	h.NotClaimed(e)
	h.failed("marking an address", h.linkOnce(elsewhere, "claims", e.fileName()))
}

// NotClaimed removes the entry of an attachment, unless it has become another one's.
func (h *Hint) NotClaimed(e Entry) {
	err := h.dropIf(e.text(e.UID), "claims", e.fileName())
	if err == nil {
		err = h.remove("claims", e.unanswered().besideName())
	}
	h.failed("letting go of an address", err)
}

// Holding returns what the attachment holds or may hold: also what a call was about
// to claim or to release, since that call may have died. It is sure if the hint is
// complete: then there is nothing else.
func (h *Hint) Holding(att Attachment) (entries []Entry, sure bool) {
	sure = h.Complete()
	entries, err := h.pendingEntries()
	entries = mine(entries, att)
	if err == nil {
		err = h.each("", att.text(""), func(e Entry, _ claimText) error {
			entries = append(entries, e)
			return nil
		})
	}
	if h.failed("finding the attachment", err) {
		sure = false
	}
	return entries, sure
}

// HoldingIn returns what claims the attachment has of one pool.
func (h *Hint) HoldingIn(poolName string, att Attachment) (entries []Entry) {
	err := h.each(poolName+".", att.text(""), func(e Entry, _ claimText) error {
		if e.Pool == poolName {
			entries = append(entries, e)
		}
		return nil
	})
	h.failed("finding the attachment", err)
	return entries
}

// claimText is what an entry in claims/ points at, and under which name.
type claimText struct{ file, text string }

// each calls f with the entries in claims/ whose file's name and text begin as told.
// An entry that is nobody's here has no attachment.
func (h *Hint) each(name, text string, f func(Entry, claimText) error) error {
	dir, names, err := h.list("claims")
	if dir == nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	buf := make([]byte, maxText)
	for _, file := range names {
		if !strings.HasPrefix(file, name) || file[0] == '@' || file[0] == '.' {
			continue
		}
		n, err := unix.Readlinkat(int(dir.Fd()), file, buf) // a third quicker than by its path
		if errors.Is(err, fs.ErrNotExist) {                 // dropped by another process meanwhile
			continue
		}
		if err != nil { // no entry of ours
			n = 0
		}
		if !bytes.HasPrefix(buf[:n], []byte(text)) {
			continue
		}
		e, _, err := parseFileName(file)
		if err != nil {
			continue
		}
		t := claimText{file, string(buf[:n])}
		e.Attachment, e.UID = parseText(t.text)
		if err := f(e, t); err != nil {
			return err
		}
	}
	return nil
}

// Taken returns the addresses of a pool that have an entry: true if another node
// was seen to hold it.
func (h *Hint) Taken(poolName string) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	err := h.each(poolName+".", "", func(e Entry, t claimText) error {
		if e.Pool == poolName {
			out[e.Address] = t.text == elsewhere
		}
		return nil
	})
	h.failed("reading what is taken", err)
	return out
}

// NotElsewhere removes the mark of an address that somebody else was seen to hold,
// so that it can be tried again.
func (h *Hint) NotElsewhere(poolName string, addr netip.Addr) {
	h.failed("letting go of an address", h.dropIf(elsewhere, "claims", Entry{Pool: poolName, Address: addr}.fileName()))
}

// removeGarbage removes what is no entry from the place of one.
func (h *Hint) removeGarbage(t claimText) error { return os.RemoveAll(h.path("claims", t.file)) }
