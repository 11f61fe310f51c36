#compdef socks-tunnel
# Completion of socks-tunnel for zsh. The program has written it itself:
# _SOCKS_TUNNEL_COMPLETE=zsh_source socks-tunnel

# Offers the names of instances that run or are configured.
_socks-tunnel-instances() {
  setopt local_options null_glob
  local -a names places
  places=(@configurations@/*.toml)
  names=(${${places:t}%.toml})
  local mine=${TMPDIR:-/tmp}/socks-tunnel-$UID
  [[ -O $mine ]] || mine=/dev/null
  places=(@runtime@/*/@socket@ ${XDG_RUNTIME_DIR:-/dev/null}/socks-tunnel/*/@socket@ $mine/*/@socket@)
  names+=(${places:h:t})
  compadd -M 'r:|-=*' "$@" -a -- names
}

# Offers the names that only the program knows, such as those of live flows.
_socks-tunnel-asked() {
  local -a answers names texts
  answers=("${(@f)$(env COMP_WORDS="${(j: :)line_words[1,line_current-1]}" COMP_TYPED="$PREFIX" \
    _SOCKS_TUNNEL_COMPLETE=zsh_complete ${(Q)line_words[1]} 2>/dev/null)}")
  answers=(${answers:#})
  names=(${answers%%$'\t'*})
  texts=(${answers//$'\t'/  })
  compadd -l -d texts "$@" -a -- names
}

@functions@
# Sourced from a start-up file, or called as what zsh has loaded by itself.
if [[ $funcstack[1] == _socks-tunnel ]]; then
  _socks-tunnel "$@"
else
  compdef _socks-tunnel socks-tunnel
fi
