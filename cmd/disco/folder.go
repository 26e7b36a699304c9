package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"disco/vmm"
)

// folderForm is what parseFolder reads, for the help text.
const folderForm = "DIR[:TAG][,OPTION…]"

const folderHelp = "a folder of this host that the guest may mount: mount -t virtiofs TAG /mnt. TAG is the folder's own name unless given. " +
	"Options: ro, the guest changes nothing in it; window=SIZE, address space in which it may map this host's page cache (default 256M; " +
	"a power of two; it costs the guest a 64th of it), or window=off, so that it copies all; dax, the guest maps larger files in it unless its mount says " +
	"otherwise (without, it does with mount -o dax). Again for the next folder"

func (r *run) addFolder(s string) error {
	f, err := parseFolder(s)
	if err == nil {
		r.cfg.Folders = append(r.cfg.Folders, f)
	}
	return err
}

// folderOption reads an option of a folder into f; ok is false if s is none.
func folderOption(f *vmm.Folder, s string) (ok bool, err error) {
	key, value, given := strings.Cut(s, "=")
	switch {
	case s == "ro":
		f.ReadOnly = true
	case s == "dax":
		f.Advise = true
	case key != "window" || !given:
		return false, nil
	case value == "off":
		f.Window = 0
	default:
		if f.Window, err = parseSize(value); err != nil || f.Window == 0 {
			err = fmt.Errorf("window=%s: give a power of two such as 1G, or off", value)
		}
	}
	return true, err
}

// parseFolder reads DIR[:TAG] and options, each after a comma. A path may contain
// commas and colons: it ends where only options follow, and a tag has no slash. The
// folder's own name, as a tag, has an underscore in place of each.
func parseFolder(s string) (vmm.Folder, error) {
	f := vmm.Folder{Window: vmm.DefaultWindow}
	path, given := s, map[string]bool{}
	for {
		at := strings.LastIndexByte(path, ',')
		if at < 0 {
			break
		}
		option := path[at+1:]
		ok, err := folderOption(&f, option)
		if !ok {
			break
		}
		if err != nil {
			return vmm.Folder{}, err
		}
		key, _, _ := strings.Cut(option, "=")
		if given[key] {
			return vmm.Folder{}, fmt.Errorf("%s is given twice", key)
		}
		given[key] = true
		path = path[:at]
	}
	if at := strings.LastIndexByte(path, ':'); at >= 0 && !strings.Contains(path[at:], "/") {
		path, f.Tag = path[:at], path[at+1:]
		if f.Tag == "" {
			return vmm.Folder{}, errors.New("no tag after the colon; write DIR or DIR:TAG")
		}
	}
	if path == "" {
		return vmm.Folder{}, errors.New("no folder; write DIR or DIR:TAG")
	}
	f.Path = path
	if f.Tag == "" {
		whole, err := filepath.Abs(path)
		if err != nil {
			return vmm.Folder{}, err
		}
		if f.Tag = filepath.Base(whole); f.Tag == "/" {
			return vmm.Folder{}, errors.New("the root has no name to be a tag; write /:TAG")
		}
		f.Tag = strings.NewReplacer(":", "_", ",", "_").Replace(f.Tag)
	}
	return f, nil
}

// formatFolder is what parseFolder reads.
func formatFolder(f vmm.Folder) string {
	s := f.Path + ":" + f.Tag
	if f.ReadOnly {
		s += ",ro"
	}
	if f.Advise {
		s += ",dax"
	}
	switch f.Window {
	case vmm.DefaultWindow:
	case 0:
		s += ",window=off"
	default:
		s += ",window=" + formatSize(f.Window)
	}
	return s
}
