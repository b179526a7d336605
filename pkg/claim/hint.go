// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Attachment is one interface of one container: what CNI adds and deletes.
type Attachment struct {
	ContainerID string
	Interface   string
}

// Held is an address that an attachment holds, as the hint has it.
type Held struct {
	Attachment
	Pool    string // the pool's name
	Address netip.Addr
	// UID of the IPAllocation; empty while its create has not been answered.
	UID types.UID
}

// Hint is the node's directory of beliefs.
//
//	claims/POOL/ADDRESS   -> CONTAINER/INTERFACE/UID   held by this node
//	claims/POOL/ADDRESS   -> elsewhere                 seen to be held by another
//	claiming/NAME@HASH    -> CONTAINER/INTERFACE/      about to be claimed, though another has the entry
//	releasing/NAME@HASH   -> CONTAINER/INTERFACE/UID   a call is about to delete it
//	owed/NAME@HASH        -> CONTAINER/INTERFACE/UID   the next call has to delete it
//	pools/TYPE.POOL.json                               the pool as this node sees it
//	pools/TYPE.POOL.last  -> ADDRESS                   where round robin stopped
//	claims/.complete      -> BOOT                      claims/ has all of this node's
//	claims/.rebuilding*   -> BOOT                      a call is making it so
//	closed                                             another IPAM's addresses are being adopted: ADDs wait (see Foreign)
//	lock                                               held to change an entry, never across a request
//
// An entry is a symbolic link that points at text, not at a file: making one is
// one system call that either finds the name free or does not, and its text is
// never torn. `ls -l` shows who has what.
type Hint struct{ dir string }

// maxText is what a symbolic link may point at, in bytes.
const maxText = 4096

// elsewhere is the text of an address that somebody else was seen to hold.
const elsewhere = "elsewhere"

// settleTime is how long an entry without UID may belong to a call that is still
// under way: more than the longest call takes.
const settleTime = 2 * time.Minute

// NewHint returns the hint in dir, which it makes when something is written.
func NewHint(dir string) *Hint { return &Hint{dir: dir} }

func (h *Hint) path(parts ...string) string {
	return filepath.Join(append([]string{h.dir}, parts...)...)
}

// These lie in claims/, so that whoever removes it removes them, too.
const (
	completeMark   = ".complete"
	rebuildingMark = ".rebuilding"
)

// Complete reports whether the hint holds at least what this node holds, and
// can go on doing so. A new directory does not: the node may have claims from
// before. Nor does one that cannot be written, or that the node has not rebuilt
// since it started: what was entered last may be lost when the power goes.
func (h *Hint) Complete() bool {
	boot, err := os.Readlink(h.path("claims", completeMark))
	const writable = 2 // W_OK
	return err == nil && boot == bootID() && syscall.Access(h.path("claims"), writable) == nil
}

// bootID is another one after each start of the node.
var bootID = sync.OnceValue(func() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(id))
})

// startRebuild returns a mark for Rebuild, to be made before it is asked what the
// node holds.
func (h *Hint) startRebuild() (mark string, err error) {
	mark = fmt.Sprintf("%s%d-%d", rebuildingMark, os.Getpid(), renames.Add(1))
	_ = os.Remove(h.path("claims", mark)) // of a process that died and had this one's number
	return mark, h.link(bootID(), "claims", mark)
}

// endRebuild removes the mark of a rebuild that has failed.
func (h *Hint) endRebuild(mark string) { _ = os.Remove(h.path("claims", mark)) }

// forget makes the next call rebuild the hint: something could not be written. A
// rebuild that has begun before may know nothing of that, and must not make it
// complete.
func (h *Hint) forget() {
	marks, _ := filepath.Glob(h.path("claims", rebuildingMark+"*"))
	for _, mark := range append(marks, h.path("claims", completeMark)) {
		_ = os.Remove(mark)
	}
}

// Hold enters an address for an attachment that is about to claim it, and
// reports whether it was free. It is how the processes on one node keep out of
// each other's way without a request.
func (h *Hint) Hold(poolName string, addr netip.Addr, att Attachment) (bool, error) {
	err := h.link(att.text(""), "claims", poolName, addr.String())
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// HoldRequested enters a requested address for an attachment that is about to
// claim it. That another attachment has the entry does not mean that it has the
// address: the API server knows, and it is asked whatever the hint says.
func (h *Hint) HoldRequested(held Held) error {
	free, err := h.Hold(held.Pool, held.Address, held.Attachment)
	if err != nil || free {
		return err
	}
	err = h.link(held.text(""), "claiming", noteName(held.unanswered()))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// Set enters what the API server has said: the address is the attachment's.
func (h *Hint) Set(held Held) error {
	if err := h.replace(held.text(held.UID), "claims", held.Pool, held.Address.String()); err != nil {
		return err
	}
	return h.strike("claiming", held.unanswered())
}

// SetElsewhere enters that somebody else holds the address that was to be
// claimed.
func (h *Hint) SetElsewhere(held Held) error {
	if err := h.Drop(held); err != nil {
		return err
	}
	return h.mark(held.Pool, held.Address)
}

func (h *Hint) mark(poolName string, addr netip.Addr) error {
	err := h.link(elsewhere, "claims", poolName, addr.String())
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// Drop removes an entry, unless it has become another one's since it was read.
func (h *Hint) Drop(held Held) error {
	if err := h.dropIf(held.text(held.UID), "claims", held.Pool, held.Address.String()); err != nil {
		return err
	}
	return h.strike("claiming", held.unanswered())
}

// unanswered is the entry as it was before its create was answered.
func (h Held) unanswered() Held {
	h.UID = ""
	return h
}

// strike removes a note; that it is gone already is no error.
func (h *Hint) strike(dir string, held Held) error {
	err := os.Remove(h.path(dir, noteName(held)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Find returns what the attachment holds or may hold, of all pools: also what a
// call was about to claim or to release, for that call may have died.
func (h *Hint) Find(att Attachment) ([]Held, error) {
	pools, err := h.names("claims")
	if err != nil {
		return nil, err
	}
	var found []Held
	for _, dir := range []string{"claiming", "releasing"} {
		notes, err := h.notes(dir)
		if err != nil {
			return nil, err
		}
		found = append(found, slices.DeleteFunc(notes, func(held Held) bool { return held.Attachment != att })...)
	}
	for _, p := range pools {
		of, err := h.FindIn(p, att)
		if err != nil {
			return nil, err
		}
		found = append(found, of...)
	}
	return found, nil
}

// FindIn returns what the attachment holds of one pool.
func (h *Hint) FindIn(poolName string, att Attachment) ([]Held, error) {
	var found []Held
	err := h.each(poolName, func(held Held, _ string) error {
		if held.Attachment == att {
			found = append(found, held)
		}
		return nil
	})
	return found, err
}

// each calls f with the entries of a pool. An entry that is nobody's here has an
// empty attachment, and what is no entry at all an empty text.
func (h *Hint) each(poolName string, f func(held Held, text string) error) error {
	dir, names, err := h.list("claims", poolName)
	if dir == nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	buf := make([]byte, maxText)
	for _, name := range names {
		addr, err := netip.ParseAddr(name)
		if err != nil {
			continue
		}
		n, err := unix.Readlinkat(int(dir.Fd()), name, buf) // a third quicker than by its path
		if errors.Is(err, fs.ErrNotExist) {                 // dropped by another process meanwhile
			continue
		}
		if err != nil { // no entry of ours
			n = 0
		}
		text := string(buf[:n])
		held := Held{Pool: poolName, Address: addr}
		held.Attachment, held.UID = parseText(text)
		if err := f(held, text); err != nil {
			return err
		}
	}
	return nil
}

// Rebuild enters all that the API server says this node holds. After that the hint
// is complete, unless an entry could not be made since startRebuild.
func (h *Hint) Rebuild(mark string, all []Held) error {
	unsettled, err := h.unsettled()
	if err != nil {
		return err
	}
	for _, held := range all {
		if slices.ContainsFunc(unsettled[held.key()], func(r Held) bool { return r.Attachment == held.Attachment }) {
			continue
		}
		if err := h.enter(held); err != nil {
			return err
		}
	}
	err = os.Rename(h.path("claims", mark), h.path("claims", completeMark))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// enter is Set for what the API server said some time ago: another attachment may
// have the address by now, and its entry must stay.
func (h *Hint) enter(held Held) error {
	entry := h.path("claims", held.Pool, held.Address.String())
	text, err := os.Readlink(entry)
	other, _ := parseText(text)
	switch {
	case err != nil:
		err := h.link(held.text(held.UID), "claims", held.Pool, held.Address.String())
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	case text == held.text(held.UID):
		return nil
	case text == elsewhere || other == held.Attachment:
		swapped, err := h.swap(text, held.text(held.UID), "claims", held.Pool, held.Address.String())
		if swapped || err != nil {
			return err
		}
	}
	return h.HoldRequested(held)
}

// Sync makes the entries of a pool agree with what the API server listed of it
// at a time: listed has every address that is held, true where it is held by
// this node. Only addresses inside are entered.
func (h *Hint) Sync(poolName string, at time.Time, inside func(netip.Addr) bool, listed map[netip.Addr]bool) error {
	known := map[netip.Addr]bool{} // as this node's
	err := h.each(poolName, func(held Held, text string) error {
		known[held.Address] = text != elsewhere && text != ""
		_, still := listed[held.Address]
		if text == "" && !still {
			return os.RemoveAll(h.path("claims", poolName, held.Address.String()))
		}
		if still || text != elsewhere && !h.stale(held, at) {
			return nil
		}
		return h.dropIf(text, "claims", poolName, held.Address.String())
	})
	if err != nil {
		return err
	}
	unsettled, err := h.unsettled()
	if err != nil {
		return err
	}
	for addr, ours := range listed {
		if ours && !known[addr] && unsettled[v1alpha1.AllocationName(poolName, addr)] == nil {
			h.forget() // somebody has been in the directory
		}
		if !inside(addr) {
			continue
		}
		if err := h.mark(poolName, addr); err != nil {
			return err
		}
	}
	return nil
}

// stale reports whether a claim that was not listed at a time is no more. One
// that was entered since may be too new for the list, unless it is from the
// future: then the clock was set back. One without UID may be about to be made.
func (h *Hint) stale(held Held, at time.Time) bool {
	entry := []string{"claims", held.Pool, held.Address.String()}
	if held.UID == "" {
		return !h.young(entry...)
	}
	const coarse = time.Second // file times are behind the clock by some milliseconds
	info, err := os.Lstat(h.path(entry...))
	return err == nil && (info.ModTime().Before(at.Add(-coarse)) || info.ModTime().After(time.Now().Add(coarse)))
}

// young reports whether an entry may belong to a call that is still under way.
// A clock that was set back does not make an entry young for ever.
func (h *Hint) young(parts ...string) bool { return h.younger(settleTime, parts...) }

func (h *Hint) younger(age time.Duration, parts ...string) bool {
	info, err := os.Lstat(h.path(parts...))
	return err == nil && time.Since(info.ModTime()).Abs() < age
}

// Releasing enters a release that is about to be carried out, and takes the
// address out of the claims.
func (h *Hint) Releasing(held Held) error {
	err := h.link(held.text(held.UID), "releasing", noteName(held))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return h.Drop(held)
}

// Owe enters that a release could not be carried out now.
func (h *Hint) Owe(held Held) error {
	if err := os.MkdirAll(h.path("owed"), 0o700); err != nil {
		return err
	}
	err := os.Rename(h.path("releasing", noteName(held)), h.path("owed", noteName(held)))
	if errors.Is(err, fs.ErrNotExist) { // struck by another process meanwhile
		err = h.link(held.text(held.UID), "owed", noteName(held))
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	h.flush("owed")
	h.flush()
	return nil
}

// flush makes a directory's entries survive a loss of power where the file system
// can do that; where it cannot, the entries are as good as ever.
func (h *Hint) flush(parts ...string) {
	if dir, err := os.Open(h.path(parts...)); err == nil {
		_ = dir.Sync()
		_ = dir.Close()
	}
}

// Paid strikes a release that was carried out.
func (h *Hint) Paid(held Held) error {
	return errors.Join(h.strike("releasing", held), h.strike("owed", held))
}

// Debts returns the releases that the next call has to carry out: those owed,
// and those whose call has been under way for so long that it must have died.
func (h *Hint) Debts() ([]Held, error) {
	owed, err := h.notes("owed")
	if err != nil {
		return nil, err
	}
	releasing, err := h.notes("releasing")
	for _, held := range releasing {
		if !h.young("releasing", noteName(held)) {
			owed = append(owed, held)
		}
	}
	return owed, err
}

// releases returns all releases that are owed or under way.
func (h *Hint) releases() ([]Held, error) {
	owed, err := h.notes("owed")
	releasing, err2 := h.notes("releasing")
	return append(owed, releasing...), errors.Join(err, err2)
}

// noted reports whether the note of a release is there.
func (h *Hint) noted(held Held) bool {
	return h.exists("owed", noteName(held)) || h.exists("releasing", noteName(held))
}

func (h *Hint) exists(parts ...string) bool {
	_, err := os.Lstat(h.path(parts...))
	return err == nil
}

// releaseYounger reports whether the note of a release is there and younger than
// age.
func (h *Hint) releaseYounger(held Held, age time.Duration) bool {
	return h.younger(age, "owed", noteName(held)) || h.younger(age, "releasing", noteName(held))
}

func (h *Hint) notes(dir string) ([]Held, error) {
	names, err := h.names(dir)
	if err != nil {
		return nil, err
	}
	var out []Held
	for _, name := range names {
		text, err := os.Readlink(h.path(dir, name))
		if err != nil { // struck by another process meanwhile
			continue
		}
		poolName, addr, err := parseNoteName(name)
		if err != nil {
			continue
		}
		held := Held{Pool: poolName, Address: addr}
		held.Attachment, held.UID = parseText(text)
		out = append(out, held)
	}
	return out, nil
}

// unsettled returns the releases that are under way or owed, by the name of the
// allocation: no longer this node's to use, and not yet free.
func (h *Hint) unsettled() (map[string][]Held, error) {
	releases, err := h.releases()
	out := map[string][]Held{}
	for _, held := range releases {
		out[held.key()] = append(out[held.key()], held)
	}
	return out, err
}

// key is the name of the allocation.
func (h Held) key() string { return v1alpha1.AllocationName(h.Pool, h.Address) }

// noteName is the name of the allocation, and tells two notes about one address
// apart. An IPv6 address has no separators in it, so that with the longest name of a
// pool it is not longer than the 255 characters that a file's name may have.
func noteName(held Held) string {
	name := held.key()
	if held.Address.Is6() && !held.Address.Is4In6() {
		bytes := held.Address.As16()
		name = held.Pool + "." + hex.EncodeToString(bytes[:])
	}
	sum := sha256.Sum256([]byte(held.text(held.UID)))
	return name + "@" + hex.EncodeToString(sum[:4])
}

func parseNoteName(note string) (poolName string, addr netip.Addr, err error) {
	name, _, _ := strings.Cut(note, "@")
	dot := strings.LastIndexByte(name, '.')
	if bytes, err := hex.DecodeString(name[dot+1:]); err == nil && len(bytes) == 16 && dot > 0 {
		return name[:dot], netip.AddrFrom16([16]byte(bytes)), nil
	}
	return v1alpha1.ParseAllocationName(name)
}

// Last returns where round robin stopped in a pool; zero when it has not begun.
func (h *Hint) Last(ref v1alpha1.PoolReference) netip.Addr {
	text, _ := os.Readlink(h.path("pools", poolFile(ref)+".last"))
	addr, _ := netip.ParseAddr(text)
	return addr
}

// SetLast enters where round robin stopped.
func (h *Hint) SetLast(ref v1alpha1.PoolReference, addr netip.Addr) error {
	return h.replace(addr.String(), "pools", poolFile(ref)+".last")
}

// View is a pool as this node saw it, and the version that it saw.
type View struct {
	Version string      `json:"version"`
	Block   *pool.Block `json:"block"`
}

// LoadView returns the view of a pool, or nil where there is none that can be
// read.
func (h *Hint) LoadView(ref v1alpha1.PoolReference) *View {
	data, err := os.ReadFile(h.path("pools", poolFile(ref)+".json"))
	if err != nil {
		return nil
	}
	var v View
	if json.Unmarshal(data, &v) != nil || v.Block == nil || v.Block.Pool != ref {
		return nil
	}
	return &v
}

// SaveView replaces the view of a pool.
func (h *Hint) SaveView(ref v1alpha1.PoolReference, v *View) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return h.rename(func(tmp string) error { return os.WriteFile(tmp, data, 0o600) }, "pools", poolFile(ref)+".json")
}

// DropView removes the view of a pool.
func (h *Hint) DropView(ref v1alpha1.PoolReference) {
	_ = os.Remove(h.path("pools", poolFile(ref)+".json"))
}

func poolFile(ref v1alpha1.PoolReference) string { return pool.Type(ref.Kind) + "." + ref.Name }

// text is the attachment as an entry points at it. None of its parts has a
// slash: CNI allows it in neither, and a UID is the API server's.
func (a Attachment) text(uid types.UID) string {
	return a.ContainerID + "/" + a.Interface + "/" + string(uid)
}

func parseText(text string) (Attachment, types.UID) {
	container, rest, ok1 := strings.Cut(text, "/")
	ifName, uid, ok2 := strings.Cut(rest, "/")
	if !ok1 || !ok2 || strings.Contains(uid, "/") {
		return Attachment{}, ""
	}
	return Attachment{ContainerID: container, Interface: ifName}, types.UID(uid)
}

// names lists a directory of the hint, without marks.
func (h *Hint) names(parts ...string) ([]string, error) {
	dir, names, err := h.list(parts...)
	if dir != nil {
		_ = dir.Close()
	}
	return slices.DeleteFunc(names, func(name string) bool { return name[0] == '.' }), err
}

// list opens a directory of the hint, for the caller to close, and reads its names.
// Where it is not there, or is no directory, nothing could be entered: then there
// is nothing to close and no error.
func (h *Hint) list(parts ...string) (dir *os.File, names []string, err error) {
	dir, err = os.Open(h.path(parts...))
	if err == nil {
		names, err = dir.Readdirnames(-1)
	}
	if err == nil {
		return dir, names, nil
	}
	if dir != nil {
		_ = dir.Close()
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		err = nil
	}
	return nil, nil, err
}

// link makes an entry, or fails with fs.ErrExist where the name is taken.
func (h *Hint) link(text string, parts ...string) error {
	name := h.path(parts...)
	err := os.Symlink(text, name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return err
		}
		err = os.Symlink(text, name)
	}
	return err
}

// replace makes an entry, or puts it in the place of the one that is there.
func (h *Hint) replace(text string, parts ...string) error {
	return h.rename(func(tmp string) error { return os.Symlink(text, tmp) }, parts...)
}

// swap is replace for an entry that still has the old text, and reports whether it
// had.
func (h *Hint) swap(old, text string, parts ...string) (swapped bool, err error) {
	entry := h.path(parts...)
	tmp := tmpName(entry)
	if err := os.Symlink(text, tmp); err != nil {
		return false, err
	}
	err = h.locked(func() error {
		if now, err := os.Readlink(entry); err != nil || now != old {
			return os.Remove(tmp)
		}
		swapped = true
		return os.Rename(tmp, entry)
	})
	return swapped, err
}

// renames gives every file of this process a name of its own.
var renames atomic.Int64

// tmpName returns a name for what is to be moved to name.
func tmpName(name string) string {
	tmp := fmt.Sprintf("%s.tmp%d-%d", name, os.Getpid(), renames.Add(1))
	_ = os.Remove(tmp) // of a process that died and had this one's number
	return tmp
}

// rename makes a file under a name of its own and moves it into place, so that
// nobody sees half of it.
func (h *Hint) rename(create func(tmp string) error, parts ...string) error {
	name := h.path(parts...)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	tmp := tmpName(name)
	if err := create(tmp); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return h.locked(func() error { return os.Rename(tmp, name) })
}

// dropIf removes an entry that still has the text.
func (h *Hint) dropIf(text string, parts ...string) error {
	entry := h.path(parts...)
	return h.locked(func() error {
		if now, err := os.Readlink(entry); err != nil || now != text {
			return nil
		}
		return os.Remove(entry)
	})
}

// locked keeps other processes from changing entries while f looks and changes.
// The kernel lifts the lock when the process ends, however it ends.
func (h *Hint) locked(f func() error) error {
	lock, err := os.OpenFile(h.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	return f()
}
