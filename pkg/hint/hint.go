// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Attachment is one interface of one container: what CNI adds and deletes.
type Attachment struct {
	ContainerID string
	Interface   string
}

// Entry is an address that an attachment holds or may hold.
type Entry struct {
	Attachment
	Pool    string // the pool's name
	Address netip.Addr
	// UID of the IPAllocation; empty while its create has not been answered.
	UID types.UID
}

// Name is the name of the IPAllocation.
func (e Entry) Name() string { return v1alpha1.AllocationName(e.Pool, e.Address) }

// Hint is what a node believes about one namespace of one cluster. Below the
// directory that all hints of the node share:
//
//	NAMESPACE@SITE/   claims/NAME              -> CONTAINER/INTERFACE/UID        held by this node
//	                         NAME              -> elsewhere                      seen to be held by another
//	                         NAME@HASH         -> CONTAINER/INTERFACE/           to be claimed, though another has the entry
//	                         @complete         -> FORMAT/BOOT                    claims/ has all that this node holds
//	                         @rebuilding...    -> FORMAT/BOOT                    a call is making it so
//	                  releases/NAME@HASH       -> CONTAINER/INTERFACE/UID/SINCE  the allocation has to be deleted
//	                           NAME@open       -> SINCE;CONTAINER/INTERFACE;...  it may still be created, and then has to go
//	                           @HASH           -> CONTAINER/INTERFACE//SINCE     whatever the attachment holds has to go
//	                  pools/TYPE.POOL.json                                       the pool as this node sees it
//	                        TYPE.POOL.last     -> ADDRESS                        where round robin stopped
//	                        TYPE.POOL.full     -> VERSION                        the block was full
//	                  lock                                                       held to change an entry, never across a request
//	                  rebuild                                                    held by the one call that lists
//	dirs/HASH                                  -> DIRECTORY                      other hints of this node
//	closed                                                                       another IPAM's addresses are being adopted: ADDs wait
//
// An entry is a symbolic link that points at text, not at a file: making one is
// one system call that either finds the name free or does not, and its text is
// never torn. `ls -l` shows who has what.
type Hint struct {
	// Namespace of the pools and their allocations.
	Namespace string
	// Site tells clusters, and the node's names in them, apart: it is the same text
	// for the same node of the same cluster.
	Site string

	root, dir string
	log       *slog.Logger
	warning   sync.Once
}

// format of the entries. Entries of another format are never read: the hint is
// rebuilt.
const format = "1"

// maxText is what a symbolic link may point at, in bytes.
const maxText = 4096

// elsewhere is the text of an address that somebody else was seen to hold.
const elsewhere = "elsewhere"

// settleTime is how long an entry may belong to a call that is still under way:
// more than the longest call takes.
const settleTime = 2 * time.Minute

// UnknownSite stands for the site of a DEL that has no credentials, on a node that has
// never claimed anything. Whoever has some takes over what is noted there.
const UnknownSite = "unknown"

// Open returns the hint for a namespace at a site below a directory. It writes
// nothing.
func Open(root, site, namespace string, log *slog.Logger) *Hint {
	home := namespace
	if len(validation.IsDNS1123Label(home)) > 0 { // a configuration can say anything
		home = hash(home)
	}
	return &Hint{Namespace: namespace, Site: site, root: root, dir: filepath.Join(root, home+"@"+site), log: log}
}

// All returns the hints that there are below a directory, and below the other
// directories that were registered there.
func All(root string, log *slog.Logger) []*Hint {
	var out []*Hint
	for _, dir := range append([]string{root}, registered(root)...) {
		homes, _ := filepath.Glob(filepath.Join(escape(dir), "*@*"))
		for _, home := range homes {
			namespace, site, _ := strings.Cut(filepath.Base(home), "@")
			if info, err := os.Lstat(home); err == nil && info.IsDir() {
				out = append(out, &Hint{Namespace: namespace, Site: site, root: dir, dir: home, log: log})
			}
		}
	}
	return out
}

// escape makes a path match nothing but itself.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// Register notes below root that hints of this node are in dir as well, so that a
// call which is not told of dir finds them.
func Register(root, dir string, log *slog.Logger) {
	h := &Hint{root: root, dir: root, log: log}
	err := h.link(dir, "dirs", hash(dir))
	if !errors.Is(err, fs.ErrExist) {
		h.failed("registering "+dir, err)
	}
}

func registered(root string) (dirs []string) {
	links, _ := filepath.Glob(filepath.Join(escape(root), "dirs", "*"))
	for _, link := range links {
		if dir, err := os.Readlink(link); err == nil && filepath.IsAbs(dir) && dir != root {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// Same reports whether two hints are one.
func (h *Hint) Same(other *Hint) bool { return h.dir == other.dir }

func (h *Hint) path(parts ...string) string {
	return filepath.Join(append([]string{h.dir}, parts...)...)
}

// failed makes the hint lose itself if something could not be read or written, and
// reports whether that is so.
func (h *Hint) failed(doing string, err error) bool {
	if err == nil {
		return false
	}
	h.forget()
	h.warning.Do(func() {
		h.log.Warn("node's hint is not usable, going on without it", "doing", doing, "error", err)
	})
	return true
}

// These lie in claims/, so that whoever empties it removes them, too. No pool's name
// begins like them.
const (
	completeMark   = "@complete"
	rebuildingMark = "@rebuilding"
)

// Complete reports whether the hint holds at least what this node holds, and
// can go on doing so. A new directory does not: the node may have claims from
// before. Nor does one that cannot be written, or that the node has not rebuilt
// since it started: what was entered last may be lost when the power goes.
func (h *Hint) Complete() bool {
	mark, err := os.Readlink(h.path("claims", completeMark))
	const writable = 2 // W_OK
	return err == nil && mark == markText() && syscall.Access(h.path("claims"), writable) == nil
}

func markText() string { return format + "/" + bootID() }

// bootID is another one after each start of the node.
var bootID = sync.OnceValue(func() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(id))
})

// forget makes the next call that needs to know rebuild the hint. A rebuild that
// has begun before may know nothing of what has failed, and must not make the hint
// complete.
func (h *Hint) forget() {
	marks, _ := filepath.Glob(filepath.Join(escape(h.path("claims")), rebuildingMark+"*"))
	for _, mark := range append(marks, h.path("claims", completeMark)) {
		_ = os.Remove(mark)
	}
}

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

// fileName is the name of the allocation as a file's name. An IPv6 address has no
// separators in it, so that with the longest name of a pool and a suffix it is not
// longer than the 255 characters that a file's name may have.
func (e Entry) fileName() string {
	if e.Address.Is6() && !e.Address.Is4In6() {
		bytes := e.Address.As16()
		return e.Pool + "." + hex.EncodeToString(bytes[:])
	}
	return e.Name()
}

// parseFileName is the reverse of fileName, with or without a suffix.
func parseFileName(file string) (e Entry, suffix string, err error) {
	name, suffix, _ := strings.Cut(file, "@")
	dot := strings.LastIndexByte(name, '.')
	if bytes, err := hex.DecodeString(name[dot+1:]); err == nil && len(bytes) == 16 && dot > 0 {
		return Entry{Pool: name[:dot], Address: netip.AddrFrom16([16]byte(bytes))}, suffix, nil
	}
	e.Pool, e.Address, err = v1alpha1.ParseAllocationName(name)
	return e, suffix, err
}

// besideName tells two entries about one address apart.
func (e Entry) besideName() string {
	return e.fileName() + "@" + hash(e.text(e.UID))[:8]
}

// unanswered is the entry as it was before its create was answered.
func (e Entry) unanswered() Entry {
	e.UID = ""
	return e
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:20])
}

// mine keeps what is of one attachment.
func mine(entries []Entry, att Attachment) []Entry {
	return slices.DeleteFunc(entries, func(e Entry) bool { return e.Attachment != att })
}
