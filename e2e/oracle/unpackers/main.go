// Command unpackers is the outside judge of the oracle: it unpacks layers with three unpackers that
// others trust, looks at the results and at our mounts with one and the same walker, and tells what
// it saw. It is a server on stdin and stdout, one JSON document per line each way, so that thousands
// of stacks pay for one start of the program.
//
// The program confines itself to the directory named by its argument (chroot), because unpackers are
// fed hostile layers here. All paths in requests are relative to that directory.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// A request names the layers of one image, uncompressed, base first, and the views to look at.
type request struct {
	// Layers are tar files.
	Layers []string `json:"layers"`
	// Unpackers says which to run, by name; see unpackers.go.
	Unpackers []string `json:"unpackers"`
	// Scratch is an empty directory; it is emptied again before the answer.
	Scratch string `json:"scratch"`
	// Views are directories to look at as they are.
	Views []string `json:"views"`
}

// A tree is what one unpacker made, or what one view shows.
type tree struct {
	// Error says why the unpacker refused; then nothing else is set.
	Error string `json:"error"`
	// From and To bound the time of unpacking, seconds since 1970: an mtime between them came from the clock.
	From int64 `json:"from"`
	To   int64 `json:"to"`
	// Entries is everything in the tree, in order of paths, parents first.
	Entries []entry `json:"entries"`
}

type answer struct {
	// Failed says what went wrong with the request itself.
	Failed   string `json:"failed"`
	Unpacked []tree `json:"unpacked"`
	Views    []tree `json:"views"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "unpackers:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: unpackers DIRECTORY")
	}
	if err := syscall.Chroot(os.Args[1]); err != nil {
		return fmt.Errorf("cannot enter %s (are you root?): %w", os.Args[1], err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// What runtimes run with: umoci relies on it for directories that no entry describes.
	syscall.Umask(0o022)
	quieten()
	looker := newLooker()
	requests, answers := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	for {
		var asked request
		if err := requests.Decode(&asked); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := answers.Encode(serve(looker, asked)); err != nil {
			return err
		}
	}
}

func serve(looker *looker, asked request) answer {
	var told answer
	for _, name := range asked.Unpackers {
		made, err := unpackAndLook(looker, name, asked)
		if err != nil {
			return answer{Failed: err.Error()}
		}
		told.Unpacked = append(told.Unpacked, made)
	}
	for _, view := range asked.Views {
		entries, err := looker.look(view)
		if err != nil {
			return answer{Failed: fmt.Sprintf("looking at %s: %v", view, err)}
		}
		told.Views = append(told.Views, tree{Entries: entries})
	}
	return told
}

func unpackAndLook(looker *looker, name string, asked request) (made tree, err error) {
	unpack, known := unpackers[name]
	if !known {
		return tree{}, fmt.Errorf("there is no unpacker %q", name)
	}
	root := filepath.Join(asked.Scratch, name)
	if err := os.Mkdir(root, 0o755); err != nil {
		return tree{}, err
	}
	defer func() {
		if failed := os.RemoveAll(root); failed != nil && err == nil {
			err = failed
		}
	}()
	// The root's time before anybody says otherwise; unpackers are given a directory like this one.
	if err := os.Chtimes(root, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
		return tree{}, err
	}
	made.From = time.Now().Unix() - 1
	for index, layer := range asked.Layers {
		if refusal := unpackLayer(unpack, root, layer); refusal != nil {
			made.Error = fmt.Sprintf("layer %d: %s", index, escape(refusal.Error()))
			return made, nil
		}
	}
	made.To = time.Now().Unix() + 1
	made.Entries, err = looker.look(root)
	return made, err
}

func unpackLayer(unpack unpacker, root, layer string) (refusal error) {
	file, err := os.Open(layer)
	if err != nil {
		return err
	}
	defer file.Close()
	defer meetAtFIFOs(root)()
	// A panic of an unpacker is its own way to refuse.
	defer func() {
		if panicked := recover(); panicked != nil {
			refusal = fmt.Errorf("panic: %v", panicked)
		}
	}()
	return unpack(root, bufio.NewReaderSize(file, 1<<16))
}

// meetAtFIFOs opens every FIFO below root once a second until the returned function is called: an unpacker that opens
// one to look at it would wait for somebody at the other end for ever.
func meetAtFIFOs(root string) (stop func()) {
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Second):
			}
			filepath.WalkDir(root, func(path string, found fs.DirEntry, err error) error {
				if err == nil && found.Type() == fs.ModeNamedPipe {
					if end, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0); err == nil {
						end.Close()
					}
				}
				return nil
			})
		}
	}()
	return func() { close(done) }
}
