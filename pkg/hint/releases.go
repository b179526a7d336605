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

// unansweredSuffix ends the file name of the note about unanswered creates of an address.
// There is one note for each address, however many calls have failed.
const unansweredSuffix = "open"

// maxUnanswered is how many attachments such a note names: the latest ones. If the
// create of an earlier one is still carried out, the controller reclaims the address.
const maxUnanswered = 8

// Release is a note that an address is to be released.
type Release struct {
	Entry
	// Since is when the release was noted.
	Since time.Time
	// Due says that any call may carry it out: it was left to later calls, or its
	// own call began so long ago (InFlight) that it must have died.
	Due bool
}

// Expired reports whether the note is so old (InFlight) that the address can no longer
// be created for the attachment. If the clock was set back, it is old as well.
func (r Release) Expired() bool { return time.Since(r.Since).Abs() >= InFlight }

// Releasing notes a release that is about to be carried out, and removes the claim. It
// reports whether the release was noted.
func (h *Hint) Releasing(e Entry) (noted bool) {
	if h.failed("noting a release", h.note(e)) {
		return false
	}
	h.NotClaimed(e)
	if e.UID != "" { // it may have been found to be lost meanwhile
		h.NotClaimed(e.WithoutUID())
	}
	return true
}

func (h *Hint) note(e Entry) error {
	if e.UID != "" {
		text := e.text(e.UID) + "/" + seconds(time.Now())
		if e.Kept {
			text += "/" + strconv.FormatInt(e.Started, 10)
		}
		return h.linkOnce(text, "releases", e.secondName())
	}
	return h.editUnanswered(e, func(all []Attachment) []Attachment {
		all = append(slices.DeleteFunc(all, func(a Attachment) bool { return a == e.Attachment }), e.Attachment)
		return all[max(0, len(all)-maxUnanswered):]
	})
}

// NotReleased leaves a release to later calls: it is due at once. It reports whether the
// release is noted.
func (h *Hint) NotReleased(e Entry) (noted bool) {
	if h.failed("leaving a release to later calls", h.note(e)) {
		return false
	}
	name := e.noteName()
	due := []unix.Timespec{{}, {}} // a time long ago, so that the note is older than InFlight
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, h.path("releases", name), due, unix.AT_SYMLINK_NOFOLLOW)
	h.flush("releases")
	h.flush()
	return true
}

// Released removes the note of a release that needs no more work: it was carried out, or was given
// up, or another release has made it needless. That spaces of the domain are full is not believed any
// more. It reports whether the note is gone.
func (h *Hint) Released(e Entry) (gone bool) {
	gone = h.removeNote(e)
	h.setFreed(e.Domain)
	if e.UID != "" {
		h.freed(e)
	}
	return gone
}

// TakenOver removes the note of a release that another claim has made needless. The address is not
// free by that.
func (h *Hint) TakenOver(e Entry) { h.removeNote(e) }

// removeNote removes the note of a release, and reports whether it is gone.
func (h *Hint) removeNote(e Entry) (gone bool) {
	var err error
	if e.UID != "" {
		err = h.remove("releases", e.noteName())
	} else {
		err = h.editUnanswered(e, func(all []Attachment) []Attachment {
			return slices.DeleteFunc(all, func(a Attachment) bool { return a == e.Attachment })
		})
	}
	return !h.failed("removing the note of a release", err)
}

// noteName returns the file name of the note about a release.
func (e Entry) noteName() string {
	if e.UID != "" {
		return e.secondName()
	}
	return e.fileName() + "@" + unansweredSuffix
}

// editUnanswered changes which attachments the note about an address names. It removes a
// note that names none.
func (h *Hint) editUnanswered(e Entry, edit func([]Attachment) []Attachment) error {
	name := e.noteName()
	if err := os.MkdirAll(h.path("releases"), 0o700); err != nil {
		return err
	}
	return h.locked(func() error {
		text, _ := os.Readlink(h.path("releases", name))
		since, before := parseUnansweredText(text)
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
		parts = append(parts, a.ContainerID+"/"+strings.ReplaceAll(a.Interface, ";", insteadOfSemicolon))
	}
	return strings.Join(parts, ";")
}

// insteadOfSemicolon stands in the note for a semicolon in an interface's name. CNI allows that,
// and no colon. Every other name stands there as it is, so that an earlier version of the plugin
// reads the note, and this one what that has written.
const insteadOfSemicolon = ":"

func parseUnansweredText(text string) (since time.Time, all []Attachment) {
	parts := strings.Split(text, ";")
	for _, part := range parts[1:] {
		if container, ifName, ok := strings.Cut(part, "/"); ok {
			all = append(all, Attachment{container, strings.ReplaceAll(ifName, insteadOfSemicolon, ";")})
		}
	}
	return parseSeconds(parts[0]), all
}

func seconds(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }

func parseSeconds(text string) time.Time {
	n, _ := strconv.ParseInt(text, 10, 64) // if it fails: 0, which is long ago
	return time.Unix(n, 0)
}

// ReleasingAttachment notes that everything the attachment holds is to be released, if
// the hint does not know what that is. It reports whether that was noted.
func (h *Hint) ReleasingAttachment(att Attachment) (noted bool) {
	err := h.linkOnce(att.text("")+"/"+seconds(time.Now()), "releases", "@"+hash(att.text("")))
	if !h.failed("noting a release", err) {
		h.flush("releases")
		h.flush()
		return true
	}
	return false
}

// takeOverUnknownSite takes over the notes of calls that could not know the site, or
// whose configuration could not be read, so that they did not know the namespace.
func (h *Hint) takeOverUnknownSite() {
	if h.Site == UnknownSite {
		return
	}
	homes, _ := filepath.Glob(filepath.Join(escape(h.root), "*@"+UnknownSite))
	for _, home := range homes {
		unknown := &Hint{Site: UnknownSite, root: h.root, dir: home, log: h.log}
		_, attachments, _ := unknown.pending()
		for _, att := range attachments {
			if h.ReleasingAttachment(att) {
				unknown.releasedAttachment(att)
			}
		}
	}
}

// releasedAttachment removes the note of ReleasingAttachment.
func (h *Hint) releasedAttachment(att Attachment) {
	h.failed("removing the note of a release", h.remove("releases", "@"+hash(att.text(""))))
}

// ResolveReleases replaces each note of ReleasingAttachment by one note for each address
// that the attachment holds. It does nothing unless the hint is complete.
func (h *Hint) ResolveReleases() {
	_, attachments := h.Pending()
	for _, att := range attachments {
		entries, complete := h.Holding(att)
		if !complete {
			return
		}
		for _, e := range entries {
			if !h.Releasing(e) || !h.NotReleased(e) {
				return
			}
		}
		h.releasedAttachment(att)
	}
}

// Pending returns the noted releases of addresses, and the attachments of which
// everything is to be released.
func (h *Hint) Pending() (releases []Release, attachments []Attachment) {
	h.takeOverUnknownSite()
	releases, attachments, err := h.pending()
	h.failed("reading releases", err)
	return releases, attachments
}

// IsReleasingAttachment reports whether ReleasingAttachment is noted for an attachment.
func (h *Hint) IsReleasingAttachment(att Attachment) bool {
	h.takeOverUnknownSite()
	_, err := os.Lstat(h.path("releases", "@"+hash(att.text(""))))
	return err == nil
}

// IsPending reports whether the release of this entry is noted.
func (h *Hint) IsPending(e Entry) bool {
	text, err := os.Readlink(h.path("releases", e.noteName()))
	if err != nil || e.UID != "" {
		return err == nil
	}
	_, all := parseUnansweredText(text)
	return slices.Contains(all, e.Attachment)
}

func (h *Hint) pending() (releases []Release, attachments []Attachment, err error) {
	err = h.eachRelease(func(name, text string) {
		var r Release
		var ok bool
		if name[0] == '@' {
			if r, ok = parseRelease(r, text); ok {
				attachments = append(attachments, r.Attachment)
			}
			return
		}
		e, suffix, err := parseFileName(name)
		if err != nil {
			return
		}
		r = Release{Entry: e, Due: !h.youngerThan(InFlight, "releases", name)}
		if suffix == unansweredSuffix {
			var unanswered []Attachment
			r.Since, unanswered = parseUnansweredText(text)
			for _, r.Attachment = range unanswered {
				releases = append(releases, r)
			}
			return
		}
		if r, ok = parseRelease(r, text); ok {
			releases = append(releases, r)
		}
	})
	return releases, attachments, err
}

func (h *Hint) pendingEntries() (entries []Entry, err error) {
	all, _, err := h.pending()
	for _, r := range all {
		entries = append(entries, r.Entry)
	}
	return entries, err
}

// parseRelease adds to a release what its note says. An earlier version of the plugin does
// not read a note with a fifth part: it would delete the allocation by its UID, which a
// takeover leaves as it is.
func parseRelease(r Release, text string) (_ Release, ok bool) {
	parts := strings.Split(text, "/")
	if len(parts) != 4 && len(parts) != 5 {
		return r, false
	}
	r.Attachment, r.UID, r.Since = Attachment{parts[0], parts[1]}, types.UID(parts[2]), parseSeconds(parts[3])
	if len(parts) == 5 {
		r.Kept = true
		r.Started, _ = strconv.ParseInt(parts[4], 10, 64) // if it fails: 0, unknown
	}
	return r, true
}

// eachRelease calls f with the file name and the text of each note.
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
