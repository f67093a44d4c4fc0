# Tools that a stage needs and the machine may lack; to be sourced.

# retry COMMAND...: up to three times, for servers that fail now and then.
retry() {
  local attempt
  for attempt in 1 2 3; do
    if "$@"; then return; fi
    echo "attempt $attempt of: $*: failed" >&2
    sleep "$((5 * attempt))"
  done
  return 1
}

# debian_packages COMMAND PACKAGE...: installs each package whose command, or file, is not there.
debian_packages() {
  local missing=()
  while [ $# -gt 0 ]; do
    command -v "$1" >/dev/null || [ -e "$1" ] || missing+=("$2")
    shift 2
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  retry apt-get -qq -o Acquire::Retries=3 update || return
  retry apt-get -qq -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# separate_apt FOLDER LINE...: makes a folder of apt's own, with more lines of configuration: with
# APT_CONFIG=FOLDER/apt.conf, apt-get downloads what it lists and does not know what the machine has.
separate_apt() {
  local apt=$1
  shift
  rm -rf "$apt"
  mkdir -p "$apt/lists/partial" "$apt/archives/partial"
  touch "$apt/status"
  cat >"$apt/apt.conf" <<CONF
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Debug::NoLocking "true";
Dir::Cache "$apt";
Dir::State "$apt";
Dir::State::status "$apt/status";
CONF
  printf '%s\n' "$@" >>"$apt/apt.conf"
  APT_CONFIG=$apt/apt.conf apt-get -qq update
}

# unpack_trixie FOLDER PACKAGE: unpacks a package of Debian 13 into a folder, unless that is there; nothing is installed.
unpack_trixie() {
  [ ! -d "$1" ] || return 0
  local folder=$1.new apt=$1.apt sources=$1.list mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '/debian/*$') || return
  debian_packages /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring || return
  mkdir -p "$(dirname "$1")"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$sources"
  separate_apt "$apt" "Dir::Etc::SourceList \"$sources\";" 'Dir::Etc::SourceParts "-";' || return
  (cd "$apt" && APT_CONFIG=$apt/apt.conf apt-get -qq download "$2") || return
  rm -rf "$folder"
  dpkg-deb -x "$apt/$2"_*.deb "$folder" || return
  rm -rf "$apt" "$sources"
  mv "$folder" "$1"
}

# python_packages FILE...: installs what the files of requirements list in .venv-ci.
python_packages() {
  local file
  for file; do retry .venv-ci/bin/pip install -r "$file" || return; done
}
