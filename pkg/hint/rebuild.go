// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Rebuilding belongs to the one call on this node that asks the API server what the node
// holds.
type Rebuilding struct {
	h    *Hint
	mark string
	lock *os.File
	err  error // the mark could not be made
	// before are the claims with a record that the hint had before the list, also those of
	// containers that ended with the node's last stop.
	before []Entry
	// had are all claims that the hint had then, by name and attachment.
	had map[string]bool
	// began is when that was.
	began time.Time
}

// Rebuild waits until no other call on this node rebuilds the hint. If another call has
// completed it since the given time, or if ctx has ended, it returns nil. Otherwise the
// caller rebuilds it: it calls Enter with what the API server lists, and then End.
func (h *Hint) Rebuild(ctx context.Context, since time.Time) *Rebuilding {
	r := &Rebuilding{h: h}
	r.lock, _ = h.lockFile("rebuild") // if it fails: without a lock
	const interval = 20 * time.Millisecond
	if r.lock != nil && !waitForLock(ctx, r.lock, interval) {
		r.unlock()
		return nil
	}
	if h.completedSince(since) {
		r.unlock()
		return nil
	}
	h.takeOverOldFormat()
	h.tidy()
	h.tidyOthers()
	r.mark = fmt.Sprintf("%s%d-%d", rebuildingMark, os.Getpid(), renames.Add(1))
	_ = os.Remove(h.path("claims", r.mark)) // of a process that died and had this one's number
	r.err = h.link(markText(), "claims", r.mark)
	h.failed("rebuilding", r.err)
	r.began = time.Now()
	r.before, _ = h.recorded()
	r.had = map[string]bool{}
	h.failed("reading claims", h.each("", "", func(e Entry, _ claimText) error {
		r.had[e.Name()+" "+e.text("")] = true
		return nil
	}))
	return r
}

// hadIt reports whether a claim of the list was entered here before or while that was made. If
// it is not there any more, it was released since.
func (r *Rebuilding) hadIt(e Entry) bool {
	if r.had[e.Name()+" "+e.text("")] {
		return true
	}
	if e.Record == nil || e.Record.Spec.AddStartedAt == nil {
		return false
	}
	started := e.Record.Spec.AddStartedAt.Time
	return !started.Before(r.began) && !started.After(time.Now()) // unless the clock was set back
}

// Missing returns the claims that the hint had before the list, and the list lacks. What
// is to be released is not among them, nor what belongs to containers that ended with the
// node's last stop.
func (r *Rebuilding) Missing(held []Entry) []Entry {
	return slices.DeleteFunc(r.Unlisted(held), func(e Entry) bool { return e.Record.dead() })
}

// Unlisted is Missing with what belongs to containers that have ended.
func (r *Rebuilding) Unlisted(held []Entry) []Entry {
	listed := make(map[string]Attachment, len(held))
	for _, e := range held {
		listed[e.Name()] = e.Attachment
	}
	return slices.DeleteFunc(slices.Clone(r.before), func(e Entry) bool {
		return listed[e.Name()] == e.Attachment || r.h.IsReleasingAttachment(e.Attachment)
	})
}

// completedSince reports whether the hint is complete and was completed since a time.
func (h *Hint) completedSince(since time.Time) bool {
	info, err := os.Lstat(h.path("claims", completeMark))
	return err == nil && h.Complete() && !info.ModTime().Before(since)
}

// End lets other calls rebuild. If Enter was not called, the hint is unchanged.
func (r *Rebuilding) End() {
	_ = os.Remove(r.h.path("claims", r.mark))
	r.unlock()
}

func (r *Rebuilding) unlock() {
	if r.lock != nil {
		_ = r.lock.Close()
	}
}

// Enter makes the hint agree with the list of what this node held at a time: it enters
// what is missing and removes what is no longer held, but enters nothing again that was released
// since. Then the hint is complete, unless it was made to forget since Rebuild.
func (r *Rebuilding) Enter(at time.Time, held []Entry) {
	h := r.h
	pending, err := h.pendingEntries()
	if err == nil {
		err = h.dropStale(at, held)
	}
	for _, e := range held {
		if slices.ContainsFunc(pending, func(p Entry) bool { return p.Attachment == e.Attachment && p.Name() == e.Name() }) {
			continue
		}
		had := r.hadIt(e)
		if err == nil {
			err = h.enter(e, had)
		}
		if err != nil && e.Record != nil { // as in Claimed
			e.Record = nil
			err = h.enter(e, had)
		}
	}
	if h.failed("rebuilding", err) || r.err != nil {
		return
	}
	err = os.Rename(h.path("claims", r.mark), h.path("claims", completeMark))
	if !errors.Is(err, fs.ErrNotExist) { // if so, another call has made the hint forget
		h.failed("rebuilding", err)
	}
	h.ResolveReleases()
}

// dropStale removes the claims of this node that the API server did not list.
func (h *Hint) dropStale(at time.Time, held []Entry) error {
	listed := make(map[string]bool, len(held))
	for _, e := range held {
		listed[e.Name()] = true
	}
	return h.each("", "", func(e Entry, t claimText) error {
		switch {
		case t.text == elsewhere || listed[e.Name()]:
			return nil
		case isLost(t.text):
			return nil
		case e.Attachment == Attachment{}:
			return os.RemoveAll(h.path("claims", t.file))
		case h.stale(e, t, at):
			return h.dropIf(t.text, "claims", t.file)
		}
		return nil
	})
}

// stale reports whether an entry missing from the list taken at `at` may be removed. An
// entry made since may be too new for the list; one whose time is in the future is not,
// because the clock was set back. An entry without UID may belong to a running call.
func (h *Hint) stale(e Entry, t claimText, at time.Time) bool {
	if e.UID == "" {
		return !h.youngerThan(InFlight, "claims", t.file)
	}
	const coarse = time.Second // a file's time is some milliseconds behind the clock
	info, err := os.Lstat(h.path("claims", t.file))
	return err == nil && (info.ModTime().Before(at.Add(-coarse)) || info.ModTime().After(time.Now().Add(coarse)))
}

// enter is like Claimed, but for what the API server said some time ago: if another
// attachment has the entry by now, that stays, and this one is entered beside it. A claim that
// the hint had is only brought up to date: if it is not there, it was released since.
func (h *Hint) enter(e Entry, had bool) error {
	file := e.fileName()
	if e.Record != nil {
		e.Record.listed()
	}
	text, err := os.Readlink(h.path("claims", file))
	other, _ := parseText(text)
	switch {
	case had && other != e.Attachment && !h.hasSecond(e): // neither of its entries is left
		return nil
	case err != nil:
		err := h.link(e.linkText(), "claims", file)
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	case claimOf(text) == e.text(e.UID) && (e.Record == nil || parseRecord(text) != nil):
		return nil
	case text == elsewhere || strings.HasPrefix(text, cooling) || other == e.Attachment:
		if _, boot := parseVersion(text); boot != "" && e.Record != nil {
			e.Record.Boot = boot
		}
		swapped, err := h.swap(text, e.linkText(), "claims", file)
		if swapped || err != nil {
			return err
		}
	}
	return h.linkOnce(e.text(""), "claims", e.WithoutUID().secondName())
}

// hasSecond reports whether an attachment has the second entry of an address.
func (h *Hint) hasSecond(e Entry) bool {
	_, err := os.Lstat(h.path("claims", e.WithoutUID().secondName()))
	return err == nil
}

// takeOverOldFormat takes over the hint of the first version, which had no namespace and
// no cluster. Its pending releases become releases of attachments. Its claims are
// removed, since the API server lists what the node holds.
func (h *Hint) takeOverOldFormat() {
	if h.isBesideOldFormat() {
		for _, other := range All(h.root, h.log) { // the earlier version knew no namespaces
			other.Forget() // before claims/ is removed, which says the same
		}
		h.Forget()
	}
	for _, dir := range []string{"owed", "releasing", "claiming"} {
		links, _ := filepath.Glob(filepath.Join(escape(h.root), dir, "*"))
		for _, link := range links {
			text, _ := os.Readlink(link)
			if att, _ := parseText(text); att != (Attachment{}) && dir != "claiming" {
				h.ReleasingAttachment(att)
			}
		}
	}
	h.removeOldFormat()
}

// isBesideOldFormat reports whether the first version has entries in the data directory. Others may
// have a directory of that name there.
func (h *Hint) isBesideOldFormat() bool {
	dir := filepath.Join(h.root, "claims")
	if !isDir(dir) { // nearly always
		return false
	}
	marks, _ := filepath.Glob(filepath.Join(escape(dir), "*"))
	entries, _ := filepath.Glob(filepath.Join(escape(dir), "*", "*"))
	return slices.ContainsFunc(marks, isEntry) || slices.ContainsFunc(entries, isEntry)
}

// removeOldFormat removes the entries of the first version, and directories that had nothing else.
func (h *Hint) removeOldFormat() {
	removed := false
	pools, _ := filepath.Glob(filepath.Join(escape(h.root), "claims", "*"))
	for _, dir := range pools {
		removed = clearDir(dir, isEntry) || removed
	}
	for _, dir := range []string{"owed", "releasing", "claiming", "claims"} {
		removed = clearDir(filepath.Join(h.root, dir), isEntry) || removed
	}
	if removed = clearDir(filepath.Join(h.root, "pools"), isPoolFile) || removed; !removed {
		return
	}
	_ = os.Remove(filepath.Join(h.root, "claims")) // if it is empty
	lock := filepath.Join(h.root, "lock")
	if info, err := os.Lstat(lock); err == nil && info.Mode().IsRegular() && info.Size() == 0 {
		_ = os.Remove(lock)
	}
}

// uptime returns how long this node has been running, or 0 if that cannot be read.
func uptime() time.Duration {
	data, _ := os.ReadFile("/proc/uptime")
	seconds, _, _ := strings.Cut(string(data), ".")
	d, _ := time.ParseDuration(seconds + "s")
	return d
}

// JustBooted reports whether this node started less than 10 minutes ago. Then the whole
// cluster may have started, and many nodes may be rebuilding their hints.
func JustBooted() bool { return uptime() < 10*time.Minute }
