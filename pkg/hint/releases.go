// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// unansweredSuffix ends the name of the note about creates of one address that were
// not answered. There is one note for an address, however many calls have failed.
const unansweredSuffix = "open"

// maxUnanswered is how many attachments such a note names, the latest ones. What an
// earlier one may still create is left to the controller.
const maxUnanswered = 8

// Release is a note: an address has to be given back.
type Release struct {
	Entry
	// Since is when the release was noted.
	Since time.Time
	// Due says that any call may carry it out: it was left to later calls, or its
	// call has been under way for so long that it must have died.
	Due bool
}

// Settled reports whether the release is so old that no create for it is under way
// any more. A clock that was set back does not make it young for ever.
func (r Release) Settled() bool { return time.Since(r.Since).Abs() >= settleTime }

// Releasing enters a release that is about to be carried out, and takes the address
// out of the claims. It reports whether the release was noted.
func (h *Hint) Releasing(e Entry) (noted bool) {
	if h.failed("noting a release", h.note(e)) {
		return false
	}
	h.NotClaimed(e)
	return true
}

func (h *Hint) note(e Entry) error {
	if e.UID != "" {
		return h.linkOnce(e.text(e.UID)+"/"+seconds(time.Now()), "releases", e.besideName())
	}
	return h.editUnanswered(e, func(all []Attachment) []Attachment {
		all = append(slices.DeleteFunc(all, func(a Attachment) bool { return a == e.Attachment }), e.Attachment)
		return all[max(0, len(all)-maxUnanswered):]
	})
}

// Owed leaves a noted release to later calls, which need not wait until this one
// cannot be under way any more. It reports whether the note is there.
func (h *Hint) Owed(e Entry) (noted bool) {
	if h.failed("leaving a release to later calls", h.note(e)) {
		return false
	}
	name := e.releaseName()
	due := []unix.Timespec{{}, {}} // long ago
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, h.path("releases", name), due, unix.AT_SYMLINK_NOFOLLOW)
	h.flush("releases")
	h.flush()
	return true
}

// Released removes the note of a release that was carried out, and reports whether
// it is gone. The pool's block is not full any more.
func (h *Hint) Released(e Entry) (gone bool) {
	var err error
	if e.UID != "" {
		err = h.remove("releases", e.releaseName())
	} else {
		err = h.editUnanswered(e, func(all []Attachment) []Attachment {
			return slices.DeleteFunc(all, func(a Attachment) bool { return a == e.Attachment })
		})
	}
	h.notFull(e.Pool)
	return !h.failed("removing the note of a release", err)
}

// releaseName is the file of the note.
func (e Entry) releaseName() string {
	if e.UID != "" {
		return e.besideName()
	}
	return e.fileName() + "@" + unansweredSuffix
}

// editUnanswered changes whom the note about an address names. Without anybody it is
// removed.
func (h *Hint) editUnanswered(e Entry, edit func([]Attachment) []Attachment) error {
	name := e.releaseName()
	if err := os.MkdirAll(h.path("releases"), 0o700); err != nil {
		return err
	}
	return h.locked(func() error {
		text, _ := os.Readlink(h.path("releases", name))
		since, before := parseUnanswered(text)
		after := edit(slices.Clone(before))
		switch {
		case len(after) == 0:
			return h.remove("releases", name)
		case slices.Equal(before, after):
			return nil
		case len(after) >= len(before): // one is new
			since = time.Now()
		}
		tmp := tmpName(h.path("releases", name))
		if err := os.Symlink(unansweredText(since, after), tmp); err != nil {
			return err
		}
		return os.Rename(tmp, h.path("releases", name))
	})
}

func unansweredText(since time.Time, all []Attachment) string {
	parts := []string{seconds(since)}
	for _, a := range all {
		parts = append(parts, a.ContainerID+"/"+a.Interface)
	}
	return strings.Join(parts, ";")
}

func parseUnanswered(text string) (since time.Time, all []Attachment) {
	parts := strings.Split(text, ";")
	for _, part := range parts[1:] {
		if container, ifName, ok := strings.Cut(part, "/"); ok {
			all = append(all, Attachment{container, ifName})
		}
	}
	return parseSeconds(parts[0]), all
}

func seconds(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }

func parseSeconds(text string) time.Time {
	n, _ := strconv.ParseInt(text, 10, 64) // zero is long ago
	return time.Unix(n, 0)
}

// ReleasingAll notes that whatever the attachment holds has to be given back: what
// that is this hint does not know. It reports whether that was noted.
func (h *Hint) ReleasingAll(att Attachment) (noted bool) {
	err := h.linkOnce(att.text("")+"/"+seconds(time.Now()), "releases", "@"+hash(att.text("")))
	if !h.failed("noting a release", err) {
		h.flush("releases")
		h.flush()
		return true
	}
	return false
}

// takeUnknown takes over what calls noted that could not know the site, or for want of a
// readable configuration the namespace.
func (h *Hint) takeUnknown() {
	if h.Site == UnknownSite {
		return
	}
	homes, _ := filepath.Glob(filepath.Join(escape(h.root), "*@"+UnknownSite))
	for _, home := range homes {
		unknown := &Hint{Site: UnknownSite, root: h.root, dir: home, log: h.log}
		_, whole, _ := unknown.pending()
		for _, att := range whole {
			if h.ReleasingAll(att) {
				unknown.ReleasedAll(att)
			}
		}
	}
}

// ReleasedAll removes the note of ReleasingAll.
func (h *Hint) ReleasedAll(att Attachment) {
	h.failed("removing the note of a release", h.remove("releases", "@"+hash(att.text(""))))
}

// ReleaseWhole turns the notes of ReleasingAll into one for each address, if the
// hint is complete and so knows them.
func (h *Hint) ReleaseWhole() {
	_, whole := h.Pending()
	for _, att := range whole {
		entries, sure := h.Holding(att)
		if !sure {
			return
		}
		for _, e := range entries {
			if !h.Releasing(e) || !h.Owed(e) {
				return
			}
		}
		h.ReleasedAll(att)
	}
}

// Pending returns the releases that are noted, and the attachments of which
// everything has to be given back.
func (h *Hint) Pending() (releases []Release, whole []Attachment) {
	h.takeUnknown()
	releases, whole, err := h.pending()
	h.failed("reading releases", err)
	return releases, whole
}

// IsPendingAll reports whether ReleasingAll is noted for an attachment.
func (h *Hint) IsPendingAll(att Attachment) bool {
	h.takeUnknown()
	_, err := os.Lstat(h.path("releases", "@"+hash(att.text(""))))
	return err == nil
}

// IsPending reports whether the release is noted.
func (h *Hint) IsPending(e Entry) bool {
	text, err := os.Readlink(h.path("releases", e.releaseName()))
	if err != nil || e.UID != "" {
		return err == nil
	}
	_, all := parseUnanswered(text)
	return slices.Contains(all, e.Attachment)
}

func (h *Hint) pending() (releases []Release, whole []Attachment, err error) {
	err = h.eachRelease(func(name, text string) {
		var r Release
		var ok bool
		if name[0] == '@' {
			if r.Attachment, _, _, ok = parseRelease(text); ok {
				whole = append(whole, r.Attachment)
			}
			return
		}
		e, suffix, err := parseFileName(name)
		if err != nil {
			return
		}
		r = Release{Entry: e, Due: !h.younger(settleTime, "releases", name)}
		if suffix == unansweredSuffix {
			var attachments []Attachment
			r.Since, attachments = parseUnanswered(text)
			for _, r.Attachment = range attachments {
				releases = append(releases, r)
			}
			return
		}
		if r.Attachment, r.UID, r.Since, ok = parseRelease(text); ok {
			releases = append(releases, r)
		}
	})
	return releases, whole, err
}

func (h *Hint) pendingEntries() (entries []Entry, err error) {
	all, _, err := h.pending()
	for _, r := range all {
		entries = append(entries, r.Entry)
	}
	return entries, err
}

func parseRelease(text string) (a Attachment, uid types.UID, since time.Time, ok bool) {
	parts := strings.Split(text, "/")
	if len(parts) != 4 {
		return a, "", since, false
	}
	return Attachment{parts[0], parts[1]}, types.UID(parts[2]), parseSeconds(parts[3]), true
}

// eachRelease calls f with the notes, but for those that are removed meanwhile.
func (h *Hint) eachRelease(f func(name, text string)) error {
	dir, names, err := h.list("releases")
	if dir == nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	for _, name := range names {
		if text, err := os.Readlink(h.path("releases", name)); err == nil && name[0] != '.' {
			f(name, text)
		}
	}
	return nil
}
