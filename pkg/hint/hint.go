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

// AttachmentOf returns the attachment that holds an allocation.
func AttachmentOf(a *v1alpha1.IPAllocation) Attachment {
	return Attachment{ContainerID: a.Spec.ContainerID, Interface: a.Spec.InterfaceName}
}

// Entry is an address that an attachment holds or may hold.
type Entry struct {
	Attachment
	Domain  string // that the address is unique in: see v1alpha1.PoolAccess
	Address netip.Addr
	// UID of the IPAllocation; empty until its create is answered.
	UID types.UID
	// Kept is true if the allocation outlives the attachment: it is released, not deleted.
	// Started is when the ADD began, in microseconds since 1970, 0 if that is unknown: it
	// tells apart what one attachment holds before and after a release, whose UID is the same.
	Kept    bool
	Started int64
	// Record is what it takes to write the allocation again, or nil.
	Record *Record
}

// Found reports whether a search has found an address: the zero Entry has none.
func (e Entry) Found() bool { return e.Address.IsValid() }

// Name returns the name of the IPAllocation.
func (e Entry) Name() string { return v1alpha1.AllocationName(e.Domain, e.Address) }

// Hint is what a node believes about one namespace of one cluster. All hints of a node
// share a directory. It contains
//
//	NAMESPACE@SITE/   claims/NAME              -> CONTAINER/INTERFACE/UID RECORD held by this node
//	                         NAME              -> elsewhere                      seen to be held by another
//	                         NAME              -> cooling:UNTIL:HASH             released, and rests; the pod with the hash may have it back
//	                         NAME@HASH         -> CONTAINER/INTERFACE/           about to be claimed, though another attachment has the entry
//	                         @complete         -> FORMAT/BOOT                    claims/ has all that this node holds
//	                         @rebuilding...    -> FORMAT/BOOT                    a call is rebuilding the hint
//	                  releases/NAME@HASH       -> CONTAINER/INTERFACE/UID/SINCE  the allocation is to be deleted
//	                                           -> CONTAINER/INTERFACE/UID/SINCE/STARTED  the allocation is to be released, not deleted
//	                           NAME@open       -> SINCE;CONTAINER/INTERFACE;...  it may still be created, and is then to be deleted
//	                           @HASH           -> CONTAINER/INTERFACE//SINCE     everything that the attachment holds is to be deleted
//	                  pools/TYPE.POOL.json                                       the pool as this node sees it
//	                        TYPE.POOL.last     -> ADDRESS                        where round robin stopped
//	                        TYPE.POOL.full     -> HASH                           the block was full, in the version and after the releases with the hash
//	                        TYPE.POOL.passed   -> HASH                           the same, but the pool overflows
//	                        TYPE.POOL.window                                   what was free in the window that was listed last
//	                        TYPE.POOL.listing                                  held by the one call that lists a window
//	                        TYPE.POOL@N.last ...                               the same for the Nth space that the pool overflows to
//	                        TYPE.POOL@lasting.full ...                           the same for where pods keep their addresses
//	                        TYPE.POOL.epoch    -> UID/HASH                       which pool of that name was seen
//	                        @DOMAIN.freed      -> RANDOM                         changes when this node releases an address of the domain
//	                        @labels.json                                         the labels of this node's Node object
//	                  lost                     -> SINCE                          the API server had lost allocations
//	                  lock                                                       held to change an entry, never across a request
//	                  rebuild                                                    held by the one call that lists
//	dirs/HASH                                  -> DIRECTORY                      other hints of this node
//	closed                                                                       addresses of another IPAM are being adopted: ADDs wait
//
// An entry is a symbolic link that points at text, not at a file. One system call makes
// it, or fails if the name is taken, and the text is never half written. `ls -l` shows
// who has what.
type Hint struct {
	// Namespace of the pools and their allocations.
	Namespace string
	// Site differs between clusters, and between two names of this node in one
	// cluster: see ledger.SiteOf.
	Site string

	root, dir string
	log       *slog.Logger
	warning   sync.Once
	// outdate tells an earlier version of the plugin that its hint is not complete any more.
	outdate sync.Once
}

// format of the entries. A hint of another format is never read, but rebuilt.
const format = "2"

// maxText is what a symbolic link may point at, in bytes.
const maxText = 4096

// elsewhere is the text of an address that others were seen to hold.
const elsewhere = "elsewhere"

// InFlight is longer than the longest call. An entry that is younger may belong to a
// call that is still running.
const InFlight = 2 * time.Minute

// UnknownSite is the site of a DEL without credentials on a node that has no hint yet. A
// later call with credentials takes over what is noted there.
const UnknownSite = "unknown"

// Open returns the hint of a namespace and a site below a directory. It does not touch
// the disk.
func Open(root, site, namespace string, log *slog.Logger) *Hint {
	home := namespace
	if len(validation.IsDNS1123Label(home)) > 0 { // the configuration is not checked
		home = hash(home)
	}
	return &Hint{Namespace: namespace, Site: site, root: root, dir: filepath.Join(root, home+"@"+site), log: log}
}

// All returns the hints below a directory and below the directories that are registered
// there.
func All(root string, log *slog.Logger) []*Hint {
	var out []*Hint
	for _, dir := range append([]string{root}, registered(root)...) {
		homes, _ := filepath.Glob(filepath.Join(escape(dir), "*@*"))
		for _, home := range homes {
			namespace, site, ours := parseHome(filepath.Base(home))
			if info, err := os.Lstat(home); ours && err == nil && info.IsDir() {
				out = append(out, &Hint{Namespace: namespace, Site: site, root: dir, dir: home, log: log})
			}
		}
	}
	return out
}

// parseHome takes apart the name of a hint's directory. ours is false if Open makes no such
// name for a site of ledger.SiteOf: others may keep theirs in the same data directory.
func parseHome(name string) (namespace, site string, ours bool) {
	namespace, site, _ = strings.Cut(name, "@")
	const bytes = 8
	id, err := hex.DecodeString(site)
	isSite := site == UnknownSite || err == nil && len(id) == bytes && hex.EncodeToString(id) == site
	return namespace, site, isSite && len(validation.IsDNS1123Label(namespace)) == 0
}

// escape returns a pattern for filepath.Glob that matches only the path.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// Register notes below root that dir has hints of this node, too. A call whose
// configuration does not name dir finds them there.
func Register(root, dir string, log *slog.Logger) {
	h := &Hint{root: root, dir: root, log: log}
	err := h.link(dir, "dirs", hash(dir))
	if err != nil && !errors.Is(err, fs.ErrExist) { // the hint itself may be well
		log.Info("a call that is not told of the data directory will not find it", "dataDir", dir, "error", err)
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

// Same reports whether two hints are the same directory.
func (h *Hint) Same(other *Hint) bool { return h.dir == other.dir }

func (h *Hint) path(parts ...string) string {
	return filepath.Join(append([]string{h.dir}, parts...)...)
}

// failed reports whether something could not be read or written. If so, the hint forgets
// that it is complete.
func (h *Hint) failed(doing string, err error) bool {
	if err == nil {
		return false
	}
	h.Forget()
	h.warning.Do(func() {
		h.log.Warn("node's hint is not usable, continuing without it", "doing", doing, "error", err)
	})
	return true
}

// The marks are in claims/, so that whoever empties it removes them, too. No pool's name
// begins with "@".
const (
	completeMark   = "@complete"
	rebuildingMark = "@rebuilding"
	// oldCompleteMark is completeMark of the first format. It is removed, so that an earlier
	// version of the plugin, if it is put back, lists first what the node holds.
	oldCompleteMark = ".complete"
)

// Complete reports whether the hint has at least what this node holds. It is not
// complete if the directory is new, since the node may have older claims; if it cannot
// be written; if it was not rebuilt since the node started, since a power failure may
// have lost the last entries; or if an earlier version of the plugin was here since, which
// has entered its claims elsewhere.
func (h *Hint) Complete() bool {
	if h.isBesideOldFormat() {
		return false
	}
	mark, err := os.Readlink(h.path("claims", completeMark))
	const writable = 2 // W_OK
	return err == nil && mark == markText() && syscall.Access(h.path("claims"), writable) == nil
}

func markText() string { return format + "/" + bootID() }

// bootID changes with each start of the node.
var bootID = sync.OnceValue(func() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(id))
})

// Forget makes the hint incomplete: the next call that needs a complete one rebuilds it.
// A rebuild that is running began before the failure, and must not complete the hint.
func (h *Hint) Forget() {
	marks, _ := filepath.Glob(filepath.Join(escape(h.path("claims")), rebuildingMark+"*"))
	for _, mark := range append(marks, h.path("claims", completeMark)) {
		_ = os.Remove(mark)
	}
}

// text returns what an entry points at. No part contains a slash: CNI allows none in a
// container ID or an interface name, and the API server makes the UID.
func (a Attachment) text(uid types.UID) string {
	return a.ContainerID + "/" + a.Interface + "/" + string(uid)
}

func parseText(text string) (Attachment, types.UID) {
	container, rest, ok1 := strings.Cut(claimOf(text), "/")
	ifName, uid, ok2 := strings.Cut(rest, "/")
	if !ok1 || !ok2 || strings.Contains(uid, "/") {
		return Attachment{}, ""
	}
	return Attachment{ContainerID: container, Interface: ifName}, types.UID(uid)
}

// fileName returns the file name of an entry: the allocation's name, but an IPv6 address
// has no separators. So with the longest pool name and a suffix it stays below the 255
// characters that a file name may have.
func (e Entry) fileName() string {
	if e.Address.Is6() && !e.Address.Is4In6() {
		bytes := e.Address.As16()
		return e.Domain + "." + hex.EncodeToString(bytes[:])
	}
	return e.Name()
}

// parseFileName is the reverse of fileName. A suffix begins with "@".
func parseFileName(file string) (e Entry, suffix string, err error) {
	name, suffix, _ := strings.Cut(file, "@")
	dot := strings.LastIndexByte(name, '.')
	if bytes, err := hex.DecodeString(name[dot+1:]); err == nil && len(bytes) == 16 && dot > 0 {
		return Entry{Domain: name[:dot], Address: netip.AddrFrom16([16]byte(bytes))}, suffix, nil
	}
	e.Domain, e.Address, err = v1alpha1.ParseAllocationName(name)
	return e, suffix, err
}

// secondName returns a file name for a second entry about the same address.
func (e Entry) secondName() string {
	return e.fileName() + "@" + hash(e.text(e.UID))[:8]
}

// WithoutUID returns the entry without the UID, as before the create was answered. Who ends it asks
// the API server for the claim.
func (e Entry) WithoutUID() Entry {
	e.UID = ""
	return e
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:20])
}
