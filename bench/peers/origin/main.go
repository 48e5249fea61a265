// origin drives the public Go module of Clip's origin, which has no command line of its own, so
// that benches can put it beside ours:
//
//	origin index IMAGE FILE          indexes an image from a registry
//	origin mount FILE DIR CACHE      mounts it in the foreground, layers cached in CACHE; SIGTERM unmounts
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/beam-cloud/clip/pkg/clip"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "origin:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if err := clip.SetLogLevel("error"); err != nil {
		return err
	}
	switch {
	case len(args) == 3 && args[0] == "index":
		return clip.CreateFromOCIImage(context.Background(), clip.CreateFromOCIImageOptions{ImageRef: args[1], OutputPath: args[2]})
	case len(args) == 4 && args[0] == "mount":
		return mount(args[1], args[2], args[3])
	default:
		return fmt.Errorf("usage: origin index IMAGE FILE | origin mount FILE DIR CACHE")
	}
}

func mount(archive, dir, cache string) error {
	start, failed, server, err := clip.MountArchive(clip.MountOptions{ArchivePath: archive, MountPoint: dir, CachePath: cache, UseCheckpoints: true})
	if err != nil {
		return err
	}
	if err := start(); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	select {
	case err := <-failed:
		return err
	case <-signals:
		return server.Unmount()
	}
}
