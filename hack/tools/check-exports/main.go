// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Command check-exports prints what packages below pkg/ export although no other
// package uses it, and fails if there is anything. It is run in the repository's
// root, with the directories of the modules to look for users in:
//
//	check-exports . tests
//
// A type is used if the signature or the fields of what is used name it, and a constant
// if its type is. Methods that the standard library or client-go call do not count.
package main

import (
	"cmp"
	"fmt"
	"go/token"
	"go/types"
	"os"
	"slices"
	"strings"

	"golang.org/x/tools/go/packages"
)

const rooms = "github.com/crd-ipam/crd-ipam/pkg/"

func main() {
	unused, err := check(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "check-exports:", err)
		os.Exit(1)
	}
	for _, line := range unused {
		fmt.Println(line)
	}
	if len(unused) > 0 {
		os.Exit(1)
	}
}

// export is an exported name, by what is the same however often its package was
// loaded: with and without tests, and for each module.
type export struct{ pkg, name string }

func check(modules []string) (unused []string, err error) {
	declared := map[export]types.Object{}
	at := map[export]token.Position{}
	used := map[export]bool{}
	for _, dir := range modules {
		pkgs, err := packages.Load(&packages.Config{
			Dir: dir, Tests: true,
			Mode: packages.NeedName | packages.NeedTypes | packages.NeedTypesInfo | packages.NeedSyntax | packages.NeedImports | packages.NeedDeps,
		}, "./...")
		if err != nil {
			return nil, err
		}
		if packages.PrintErrors(pkgs) > 0 {
			return nil, fmt.Errorf("packages of %s do not compile", dir)
		}
		for _, p := range pkgs {
			declare(p, declared, at)
			use(p, used)
		}
	}
	for e := range used {
		if obj := declared[e]; obj != nil {
			reach(obj.Type(), declared, used)
		}
	}
	for e, obj := range declared {
		if !used[e] && !isMember(obj, used) {
			unused = append(unused, fmt.Sprintf("%s: %s is not used outside of %s", at[e], e.name, e.pkg))
		}
	}
	slices.SortFunc(unused, cmp.Compare[string])
	return unused, nil
}

// declare notes what a package exports: names at the top, and methods.
func declare(p *packages.Package, declared map[export]types.Object, positions map[export]token.Position) {
	for _, obj := range p.TypesInfo.Defs {
		if obj == nil || !obj.Exported() || obj.Pkg() == nil || !strings.HasPrefix(obj.Pkg().Path(), rooms) || obj.Pkg().Name() != p.Name {
			continue
		}
		at := p.Fset.Position(obj.Pos())
		if name := nameOf(obj); name != "" && !strings.HasSuffix(at.Filename, "_test.go") {
			declared[export{obj.Pkg().Path(), name}] = obj
			positions[export{obj.Pkg().Path(), name}] = at
		}
	}
}

// use notes what a package uses of others.
func use(p *packages.Package, used map[export]bool) {
	self := strings.TrimSuffix(p.PkgPath, "_test")
	for _, obj := range p.TypesInfo.Uses {
		if obj.Pkg() != nil && (obj.Pkg().Path() != self || p.PkgPath != self) {
			used[export{obj.Pkg().Path(), nameOf(obj)}] = true
		}
	}
}

// reach notes that what a type names is used.
func reach(t types.Type, declared map[export]types.Object, used map[export]bool) {
	switch t := t.(type) {
	case *types.Alias:
		reach(types.Unalias(t), declared, used)
	case *types.Named:
		e := export{name: t.Obj().Name()}
		if t.Obj().Pkg() != nil {
			e.pkg = t.Obj().Pkg().Path()
		}
		if obj := declared[e]; obj != nil && !used[e] {
			used[e] = true
			reach(t.Underlying(), declared, used)
		}
	case *types.Signature:
		reach(t.Params(), declared, used)
		reach(t.Results(), declared, used)
	case *types.Tuple:
		for v := range t.Variables() {
			reach(v.Type(), declared, used)
		}
	case *types.Struct:
		for f := range t.Fields() {
			if f.Exported() {
				reach(f.Type(), declared, used)
			}
		}
	case *types.Map:
		reach(t.Key(), declared, used)
		reach(t.Elem(), declared, used)
	case interface{ Elem() types.Type }: // pointers, slices, arrays, channels
		reach(t.Elem(), declared, used)
	}
}

// isMember reports whether an object is a constant of a type that is used: whoever may
// get one may have to name it.
func isMember(obj types.Object, used map[export]bool) bool {
	named, ok := obj.Type().(*types.Named)
	_, constant := obj.(*types.Const)
	return ok && constant && used[export{named.Obj().Pkg().Path(), named.Obj().Name()}]
}

// nameOf returns how an object is called outside of its package: NAME, or TYPE.METHOD.
// Fields and what interfaces ask for have no name here.
func nameOf(obj types.Object) string {
	switch obj := obj.(type) {
	case *types.Func:
		return funcName(obj)
	case *types.TypeName, *types.Const:
		if obj.Parent() == obj.Pkg().Scope() {
			return obj.Name()
		}
	case *types.Var:
		if obj.Parent() == obj.Pkg().Scope() {
			return obj.Name()
		}
	}
	return ""
}

func funcName(f *types.Func) string {
	f = f.Origin()
	recv := f.Signature().Recv()
	if recv == nil {
		return f.Name()
	}
	t := recv.Type()
	if ptr, ok := t.(*types.Pointer); ok {
		t = ptr.Elem()
	}
	named, ok := t.(*types.Named)
	if !ok || !named.Obj().Exported() || calledByInterface[f.Name()] {
		return ""
	}
	return named.Obj().Name() + "." + f.Name()
}

// calledByInterface are methods that the standard library and client-go call.
var calledByInterface = map[string]bool{
	"Error": true, "Unwrap": true, "Is": true, "As": true, "String": true,
	"Write": true, "Close": true, "Handle": true, "Enabled": true, "WithAttrs": true, "WithGroup": true,
	"Describe": true, "Collect": true, "Start": true, "NeedLeaderElection": true, "RoundTrip": true,
}
