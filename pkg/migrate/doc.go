// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package migrate takes over what nv-ipam has given on a node: each entry of its
// store becomes an IPAllocation of the attachment that answers on the address.
//
// nv-ipam may be serving all the while. So it is done in two passes around the
// moment in which the plugin's binary is replaced:
//
//	claim   every entry of the store
//	note    in the journal what has been claimed
//	close   the node: ADDs of the new plugin wait
//	switch  the binary: no new call reaches nv-ipam
//	settle  claim what is new in the store, until it has not changed for longer
//	        than a call that was under way can take
//	open
//
// The store is read and never written. Until the switch, nv-ipam answers for the
// node, and killing this at any point leaves it so; after it, the journal says
// what has been claimed already, and a second run goes on from there.
package migrate
