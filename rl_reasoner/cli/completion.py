"""The verb `completion`: the script by which a shell completes our command line.

The script knows nothing itself: it asks `rl-reasoner completion words WORD...` for what can stand
in place of the last word (`candidates`), and completes paths by the shell's own means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tyro.conf import Positional

_BASH = r"""# rl-reasoner: source <(rl-reasoner completion bash)
_rl_reasoner() {
  local line=${COMP_LINE:0:COMP_POINT} cur answer paths name
  local -a words
  read -ra words <<< "$line"
  [[ $line == *[[:space:]] ]] && words+=("")
  cur=${words[-1]}
  answer=$(rl-reasoner completion words "${words[@]:1}" 2>/dev/null) || return
  mapfile -t COMPREPLY <<< "$answer"
  paths=${COMPREPLY[0]}
  COMPREPLY=("${COMPREPLY[@]:1}")
  name=$cur
  [[ $cur == --*=* ]] && name=${cur#*=}
  case $paths in
    :files) mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$name") ;;
    :folders) mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -d -- "$name") ;;
  esac
  [[ $paths != : ]] && compopt -o filenames 2>/dev/null
  # readline replaces what stands behind the last ":" or "=" alone
  local before=${cur%"${cur##*[:=]}"} i
  for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]=${COMPREPLY[i]#"$before"}; done
}
complete -F _rl_reasoner rl-reasoner
"""
_ZSH = r"""#compdef rl-reasoner
# rl-reasoner: source <(rl-reasoner completion zsh)
_rl_reasoner() {
  local -a lines
  lines=("${(@f)$(rl-reasoner completion words "${(@)words[2,$CURRENT]}" 2>/dev/null)}")
  local paths=$lines[1]
  lines=("${(@)lines[2,-1]}")
  (( $#lines )) && compadd -a lines
  [[ $PREFIX == --*=* ]] && compset -P '*='
  case $paths in
    :files) _files ;;
    :folders) _files -/ ;;
  esac
}
compdef _rl_reasoner rl-reasoner
"""
_FISH = r"""# rl-reasoner: rl-reasoner completion fish | source
function __rl_reasoner
    set -l words (commandline -opc) (commandline -ct)
    set -l lines (rl-reasoner completion words $words[2..] 2>/dev/null)
    string join \n -- $lines[2..]
    switch "$lines[1]"
        case :files
            __fish_complete_path (commandline -ct)
        case :folders
            __fish_complete_directories (commandline -ct)
    end
end
complete -c rl-reasoner -f -a '(__rl_reasoner)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


@dataclass
class CompletionVerb:
    """Print a shell's completion script: verbs, flags, recipes, fields, sets, runs, files.

    bash and zsh: source <(rl-reasoner completion bash). fish: rl-reasoner completion fish | source
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """the shell"""

    def run(self) -> None:
        """Print the script."""
        print(SCRIPTS[self.shell], end="")


def print_candidates(verbs: Mapping[str, type[Any]], words: Sequence[str]) -> None:
    """Answer a shell's script: the kind of path that fits, then a candidate a line."""
    from rl_reasoner.cli.candidates import complete

    print("\n".join(complete(verbs, words).lines()))
