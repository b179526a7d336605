// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"bytes"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Claiming enters an address for an attachment that is about to claim it. taken is true
// if the address already has an entry. So the processes on one node try different
// addresses, and need no request for that. If the disk fails, taken is false: the create decides.
func (h *Hint) Claiming(e Entry) (taken bool) {
	h.outdate.Do(func() { _ = os.Remove(filepath.Join(h.root, "claims", oldCompleteMark)) })
	err := h.link(e.text(""), "claims", e.fileName())
	if errors.Is(err, fs.ErrExist) {
		return true
	}
	h.failed("entering an address", err)
	return false
}

// ClaimingRequested enters a requested address for an attachment that is about to claim
// it, as a second entry if another attachment has one: that one may not hold the
// address, and the API server is asked whatever the hint says.
func (h *Hint) ClaimingRequested(e Entry) {
	if h.Claiming(e) {
		h.failed("entering an address", h.linkOnce(e.text(""), "claims", e.WithoutUID().secondName()))
	}
}

// Claimed enters that the attachment holds the address, as the API server has said.
func (h *Hint) Claimed(e Entry) {
	if e.Record != nil && e.Record.Spec.AddStartedAt != nil {
		e.Record.Boot = shortBoot()
	}
	err := h.replace(e.linkText(), "claims", e.fileName())
	if err != nil && e.Record != nil { // a full disk has room for a short entry
		err = h.replace(e.text(e.UID), "claims", e.fileName())
	}
	if h.failed("entering a claim", err) {
		return
	}
	h.failed("entering a claim", h.remove("claims", e.WithoutUID().secondName()))
}

// Elsewhere enters that another attachment holds the address that was to be claimed.
func (h *Hint) Elsewhere(e Entry) {
	h.NotClaimed(e)
	h.failed("marking an address", h.linkOnce(elsewhere, "claims", e.fileName()))
}

// NotClaimed removes the entry of an attachment. It leaves the entry of another one.
func (h *Hint) NotClaimed(e Entry) {
	err := h.dropIf(e.text(e.UID), "claims", e.fileName())
	if err == nil {
		err = h.remove("claims", e.WithoutUID().secondName())
	}
	h.failed("removing an address", err)
}

// Holding returns what the attachment holds or may hold, including what a call was about
// to claim or to release: that call may have died. If complete, it holds nothing else.
func (h *Hint) Holding(att Attachment) (entries []Entry, complete bool) {
	complete = h.Complete()
	entries, err := h.pendingEntries()
	entries = slices.DeleteFunc(entries, func(e Entry) bool { return e.Attachment != att })
	if err == nil {
		err = h.each("", att.text(""), func(e Entry, t claimText) error {
			entries = append(entries, e.keptBy(parseRecord(t.text)))
			return nil
		})
	}
	if h.failed("finding the attachment", err) {
		complete = false
	}
	return entries, complete
}

// HoldingIn returns the attachment's claims in one domain.
func (h *Hint) HoldingIn(domain string, att Attachment) []Entry {
	return h.Known(domain, att, v1alpha1.PodReference{}).Holding
}

// Knowledge is what the hint has of one domain.
type Knowledge struct {
	Holding []Entry      // the attachment's claims
	Latest  uint64       // the highest resource version of all claims
	Resting []netip.Addr // what the pod has released, and rests
	// Entered are the addresses with an entry: Claiming would find them taken, if they are not
	// released meanwhile.
	Entered map[netip.Addr]bool
}

// Known reads the entries of a domain once. It drops those whose rest is over.
func (h *Hint) Known(domain string, att Attachment, pod v1alpha1.PodReference) Knowledge {
	k := Knowledge{Entered: map[netip.Addr]bool{}}
	err := h.each(domain+".", "", func(e Entry, t claimText) error {
		if e.Domain != domain {
			return nil
		}
		if version, boot := parseVersion(t.text); !deadBoot(boot) { // the dead are not written again
			k.Latest = max(k.Latest, version)
		}
		if e.Attachment == att {
			e.Record = parseRecord(t.text)
			k.Holding = append(k.Holding, e.keptBy(e.Record))
		}
		switch until, of := parseCooling(t.text); {
		case of == "":
		case isOver(until):
			return h.dropIf(t.text, "claims", t.file)
		case of == podHash(pod) && pod.Name != "":
			k.Resting = append(k.Resting, e.Address)
		}
		k.Entered[e.Address] = true
		return nil
	})
	h.failed("finding the attachment", err)
	return k
}

// claimText is the name of an entry in claims/ and what it points at.
type claimText struct{ file, text string }

// each calls f with the entries in claims/ whose file name begins with name and whose
// text begins with text. The entry has no attachment if the address is held elsewhere.
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
		if errors.Is(err, fs.ErrNotExist) {                 // removed by another process since
			continue
		}
		if err != nil { // not a symbolic link
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

// SeenElsewhere returns the addresses of a domain that others were seen to hold.
func (h *Hint) SeenElsewhere(domain string) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	err := h.each(domain+".", elsewhere, func(e Entry, t claimText) error {
		if e.Domain == domain && t.text == elsewhere {
			out[e.Address] = true
		}
		return nil
	})
	h.failed("reading what others hold", err)
	return out
}

// ForgetElsewhere removes the mark that others hold an address: it is a candidate again.
func (h *Hint) ForgetElsewhere(domain string, addr netip.Addr) {
	h.failed("removing an address", h.dropIf(elsewhere, "claims", Entry{Domain: domain, Address: addr}.fileName()))
}
