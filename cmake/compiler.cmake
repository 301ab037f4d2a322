# The compilers that bnext is built with, and what to install where one of them has no OpenMP.
#
# Also a script, which is how .ci/check-compilers tries compilers that are not there:
#   cmake -DCMAKE_CXX_COMPILER_ID=GNU -DCMAKE_CXX_COMPILER_VERSION=11.4 -P cmake/compiler.cmake

# The oldest that CI builds with, warnings as errors.
set(BNEXT_OLDEST_GNU 12)
set(BNEXT_OLDEST_Clang 14)

set(bnext_compilers "GCC ${BNEXT_OLDEST_GNU} or later, or Clang ${BNEXT_OLDEST_Clang} or later")
set(bnext_choose_compiler "CXX names another: CXX=g++-12 pip install .")

if(CMAKE_CXX_COMPILER_ID STREQUAL "AppleClang")
  message(WARNING "bnext: Apple's Clang ${CMAKE_CXX_COMPILER_VERSION} is untested; tested are "
                  "${bnext_compilers}.")
elseif(NOT CMAKE_CXX_COMPILER_ID MATCHES "^(GNU|Clang)$")
  message(FATAL_ERROR "bnext: the kernels use the vector extensions of GCC and Clang: expected "
                      "${bnext_compilers}, got ${CMAKE_CXX_COMPILER_ID} "
                      "${CMAKE_CXX_COMPILER_VERSION}. ${bnext_choose_compiler}")
elseif(CMAKE_CXX_COMPILER_VERSION VERSION_LESS BNEXT_OLDEST_${CMAKE_CXX_COMPILER_ID})
  message(FATAL_ERROR "bnext: expected ${bnext_compilers}, got ${CMAKE_CXX_COMPILER_ID} "
                      "${CMAKE_CXX_COMPILER_VERSION} (${CMAKE_CXX_COMPILER}). "
                      "${bnext_choose_compiler}")
endif()

# What to do about a build without OpenMP. Clang is often installed without its runtime (Debian, macOS);
# the package then builds, and has one thread. pip hides a warning of CMake's, so the text becomes part
# of the module, and `bnext.show_config()` says it. It has no semicolon and no quotes.
function(bnext_openmp_remedy result)
  string(REGEX MATCH "^[0-9]+" major "${CMAKE_CXX_COMPILER_VERSION}")
  if(NOT BNEXT_OPENMP)
    set(remedy "build with BNEXT_OPENMP=ON, which is the default")
  elseif(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(remedy "install libgomp for GCC ${major}, and build again")
  elseif(CMAKE_CXX_COMPILER_ID STREQUAL "AppleClang")
    set(remedy "brew install libomp, set OpenMP_ROOT to its folder, and build again")
  else()
    set(remedy "install the OpenMP runtime of Clang ${major} (Debian and Ubuntu: \
apt install libomp-${major}-dev, Fedora: libomp-devel, conda-forge: llvm-openmp), or set CXX=g++, \
and build again")
  endif()
  set(${result} "${remedy}" PARENT_SCOPE)
endfunction()

# Why a part is not built: an error where its option asks for it, one line where that is AUTO.
function(bnext_without option what reason remedy)
  if(${option} STREQUAL "AUTO")
    message(STATUS "bnext: no ${what}, since ${reason}${remedy}")
  else()
    message(FATAL_ERROR "bnext: ${option}=${${option}}, but ${reason}")
  endif()
endfunction()
