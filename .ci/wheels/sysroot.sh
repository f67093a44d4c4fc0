# A sysroot of glibc 2.28, for wheels that run on every Linux since 2018: bash .ci/wheels/sysroot.sh ARCH FOLDER
#
# Headers and the names and versions of what the C library exports come from the package ziglang, which knows those of
# every glibc; start files and libgcc_s are the compiler's own. Nothing of it runs, and nothing of it is in a wheel.
set -euo pipefail
arch=$1 sysroot=$2 glibc=2.28
case $arch in
  x86_64) cxx=${CXX:-g++} family=x86 ;;
  aarch64) cxx=aarch64-linux-gnu-g++ family=aarch64 ;;
  *) echo "no recipe for $arch" >&2; exit 1 ;;
esac
[ ! -d "$sysroot" ] || exit 0
echo "+ a sysroot of glibc $glibc for $arch"
cache=$sysroot.cache new=$sysroot.new
rm -rf "$new"
mkdir -p "$cache" "$new/usr/include" "$new/usr/lib"

# An empty library makes it write the stubs that it would link with.
export ZIG_GLOBAL_CACHE_DIR=$cache ZIG_LOCAL_CACHE_DIR=$cache
.venv-ci/bin/python -m ziglang cc -target "$arch-linux-gnu.$glibc" -shared -x c /dev/null -o "$cache/empty.so"
stubs=$(dirname "$(find "$cache/o" -name libc.so.6)")
headers=$(.venv-ci/bin/python -c 'import ziglang; print(ziglang.__path__[0])')/lib/libc/include
for folder in any-linux-any "$family-linux-any" generic-glibc "$family-linux-gnu"; do
  cp -r "$headers/$folder/." "$new/usr/include"
done
rm "$new/usr/include/sys/single_threaded.h" # libstdc++ asks whether it is there, which it is from glibc 2.32 on

lib=$new/usr/lib
cp "$stubs"/*.so.* "$lib"
for name in m pthread dl rt; do ln -s "$(basename "$lib/lib$name".so.*)" "$lib/lib$name.so"; done
loader=$(objdump -p "$lib/libld.so.2" | awk '$1 == "SONAME" { print $2 }')
mv "$lib/libld.so.2" "$lib/$loader"
for file in crt1.o crti.o crtn.o Scrt1.o libgcc_s.so.1; do cp "$("$cxx" -print-file-name=$file)" "$lib"; done
# The compiler's libstdc++ reads a flag that later C libraries have: whether the process has one thread alone. And
# pthread_atfork and fstat are functions of each program, which this version of the C library has in a static part.
# __fxstat takes the number of the layout of what it fills in.
"$cxx" -x c -O2 -fPIC -fvisibility=hidden -c - -o "$lib/compat.o" <<'C'
char __libc_single_threaded = 0;

typedef void handler(void);
extern void* __dso_handle;
#pragma GCC visibility push(default)
int __register_atfork(handler*, handler*, handler*, void*);
int __fxstat(int version, int file, void* status);
#pragma GCC visibility pop
int pthread_atfork(handler* prepare, handler* parent, handler* child) {
  return __register_atfork(prepare, parent, child, __dso_handle);
}

#ifdef __x86_64__
enum { layout = 1 };
#else
enum { layout = 0 };
#endif
int fstat(int file, void* status) { return __fxstat(layout, file, status); }
C
ar rcsD "$lib/libcompat.a" "$lib/compat.o"
echo "GROUP ( libc.so.6 libcompat.a AS_NEEDED ( $loader ) )" >"$lib/libc.so"
rm -r "$cache"
mv "$new" "$sysroot"
