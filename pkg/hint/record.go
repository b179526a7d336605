// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Record is what it takes to write an allocation again if the API server has lost it. An
// entry has one once its create was answered.
type Record struct {
	// Spec of the allocation.
	Spec v1alpha1.IPAllocationSpec `json:"spec"`
	// Lost is true if the API server has lost the allocation, and it is not written again
	// yet.
	Lost bool `json:"lost,omitempty"`
	// Problem says why a lost allocation could not be written again, or is empty.
	Problem string `json:"problem,omitempty"`

	// ResourceVersion of the allocation; 0 if it is lost. The API server has been at
	// least there.
	ResourceVersion uint64 `json:"-"`
	// Boot says which start of the node the container belongs to; empty if that is not
	// known.
	Boot string `json:"-"`
}

// NewRecord returns the record of an allocation as the API server has it.
func NewRecord(a *v1alpha1.IPAllocation) *Record {
	r := &Record{Spec: a.Spec, ResourceVersion: v1alpha1.VersionNumber(a.ResourceVersion)}
	r.Spec.Next = nil // which another node writes again
	return r
}

// listed sets the boot of a record that the API server has listed: this one if the ADD
// began since the node's start.
func (r *Record) listed() {
	if started := r.Spec.AddStartedAt; r.Boot == "" && started != nil && started.After(time.Now().Add(-uptime())) {
		r.Boot = shortBoot()
	}
}

// dead reports whether the container belongs to an earlier start of the node.
func (r *Record) dead() bool { return deadBoot(r.Boot) }

func deadBoot(boot string) bool { return boot != "" && boot != shortBoot() }

func shortBoot() string { return bootID()[:min(8, len(bootID()))] }

// maxProblem bounds Problem, in bytes.
const maxProblem = 300

// linkText returns what an entry in claims/ points at: the claim, and behind it a space and
// the record.
func (e Entry) linkText() string {
	claim := e.text(e.UID)
	if e.Record == nil {
		return claim
	}
	r := *e.Record
	r.Problem = r.Problem[:min(maxProblem, len(r.Problem))]
	data, err := json.Marshal(r)
	text := claim + " " + strconv.FormatUint(r.ResourceVersion, 10) + " " + r.Boot + " " + string(data)
	if err != nil || len(text) >= maxText {
		return claim
	}
	return text
}

// claimOf returns what comes before the record.
func claimOf(text string) string {
	claim, _, _ := strings.Cut(text, " ")
	return claim
}

// parseVersion returns the resource version and the boot in an entry's text without
// reading all of the record.
func parseVersion(text string) (version uint64, boot string) {
	parts := strings.SplitN(text, " ", 4)
	if len(parts) != 4 {
		return 0, ""
	}
	return v1alpha1.VersionNumber(parts[1]), parts[2]
}

func parseRecord(text string) *Record {
	parts := strings.SplitN(text, " ", 4)
	var r Record
	if len(parts) != 4 || json.Unmarshal([]byte(parts[3]), &r) != nil {
		return nil
	}
	r.ResourceVersion, r.Boot = parseVersion(text)
	return &r
}

// isLost reports whether a text says that an allocation of a container that may live was
// lost.
func isLost(text string) bool {
	r := parseRecord(text)
	return r != nil && r.Lost && !r.dead()
}

// Recorded returns the claims with a record, but for those of containers that ended with
// the node's last stop.
func (h *Hint) Recorded() (entries []Entry) {
	entries, _ = h.recorded()
	return slices.DeleteFunc(entries, func(e Entry) bool { return e.Record.dead() })
}

// LostAt returns the entry of a lost allocation of an address whose container may live, or
// nil.
func (h *Hint) LostAt(domain string, addr netip.Addr) *Entry {
	e := Entry{Domain: domain, Address: addr}
	text, err := os.Readlink(h.path("claims", e.fileName()))
	if err != nil || !isLost(text) {
		return nil
	}
	e.Attachment, e.UID = parseText(text)
	e.Record = parseRecord(text)
	return &e
}

// AllRecorded reports whether all claims have a record. Those that an earlier version of
// the plugin has entered have none.
func (h *Hint) AllRecorded() bool {
	_, without := h.recorded()
	return without == 0
}

func (h *Hint) recorded() (entries []Entry, without int) {
	err := h.each("", "", func(e Entry, t claimText) error {
		e.Record = parseRecord(t.text)
		switch {
		case e.Record == nil && e.UID != "":
			without++
		case e.Record != nil:
			entries = append(entries, e.keptBy(e.Record))
		}
		return nil
	})
	h.failed("reading claims", err)
	return entries, without
}

// SetRecord adds the record to a claim that was entered without one.
func (h *Hint) SetRecord(e Entry) {
	e.Record.listed()
	_, err := h.swap(e.text(e.UID), e.linkText(), "claims", e.fileName())
	h.failed("entering a record", err)
}

// Lost enters that the API server has lost the allocation: from now on its create may be
// carried out at any time. It reports whether the attachment still has the entry.
func (h *Hint) Lost(e Entry, problem string) bool {
	lost := e.WithoutUID()
	lost.Record = &Record{Spec: e.Record.Spec, Boot: e.Record.Boot, Lost: true, Problem: problem}
	swapped, err := h.swap(e.linkText(), lost.linkText(), "claims", e.fileName())
	return !h.failed("entering a loss", err) && swapped
}

// Restored enters that a lost allocation was written again. It returns false if the
// attachment has no such entry any more: it was released meanwhile.
func (h *Hint) Restored(e Entry) bool {
	swapped, err := h.swap(e.WithoutUID().linkText(), e.linkText(), "claims", e.fileName())
	return !h.failed("entering a claim", err) && swapped
}

// SetLossSeen notes that this node has found a loss of the record now.
func (h *Hint) SetLossSeen() {
	h.failed("noting a loss", h.replace(seconds(time.Now()), "lost"))
}

// LossSeen returns when this node has last found a loss; zero if never.
func (h *Hint) LossSeen() time.Time {
	text, err := os.Readlink(h.path("lost"))
	if err != nil {
		return time.Time{}
	}
	return parseSeconds(text)
}

// Epoch returns the text that SetEpoch has noted for a pool: empty if there is none.
// While it is the same, the pool's allocations are not known to be lost.
func (h *Hint) Epoch(ref v1alpha1.PoolReference) string {
	text, err := os.Readlink(h.path("pools", poolFile(ref)+epochSuffix))
	if err == nil {
		return text
	}
	if v := h.View(ref); v != nil { // of an earlier version of the plugin
		uid, _, _ := strings.Cut(v.Version, "/")
		return EpochText(types.UID(uid), "")
	}
	return ""
}

const epochSuffix = ".epoch"

// isEpochInUse reports whether a file in pools/ is the epoch of a pool in which something
// is held.
func (h *Hint) isEpochInUse(file string) bool {
	name, isEpoch := strings.CutSuffix(file, epochSuffix)
	_, poolName, _ := strings.Cut(name, ".")
	return isEpoch && h.HoldsIn(poolName)
}

// HoldsIn reports whether this node holds addresses of a pool.
func (h *Hint) HoldsIn(poolName string) (holds bool) {
	err := h.each("", "", func(e Entry, t claimText) error {
		from := e.Domain
		if r := parseRecord(t.text); r != nil {
			from = r.Spec.PoolRef.Name
		}
		holds = holds || from == poolName && e.Attachment != Attachment{}
		return nil
	})
	h.failed("reading claims", err)
	return holds
}

// EpochText is what tells a pool from another one of its name, and from the same one
// after an operator has said that allocations were lost.
func EpochText(uid types.UID, word string) string { return string(uid) + "/" + hash(word) }

// SetEpoch replaces the text for a pool.
func (h *Hint) SetEpoch(ref v1alpha1.PoolReference, text string) {
	h.failed("noting which pool was seen", h.replace(text, "pools", poolFile(ref)+epochSuffix))
}
