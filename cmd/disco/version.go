package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Long:  "version prints the version, the commit that it was built from, and by which Go\nfor which machine.",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			info, _ := debug.ReadBuildInfo()
			_, err := fmt.Fprintln(c.OutOrStdout(), version(info))
			return err
		},
	}
}

// version reads what the Go toolchain stamps into a binary; info may be nil.
func version(info *debug.BuildInfo) string {
	v, commit := "(devel)", ""
	if info != nil {
		if info.Main.Version != "" {
			v = info.Main.Version
		}
		settings := map[string]string{}
		for _, s := range info.Settings {
			settings[s.Key] = s.Value
		}
		if r := settings["vcs.revision"]; r != "" {
			commit = " commit " + r[:min(12, len(r))]
			if settings["vcs.modified"] == "true" {
				commit += " (modified)"
			}
		}
	}
	return fmt.Sprintf("disco %s%s %s %s/%s", v, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
